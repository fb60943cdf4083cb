"""Running statistics of batch norm across steps that are left out."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Statistics:
    """The running statistics of a model, which follow every batch that passes through it.

    They have taken up a step's data before anybody knows that the step is left out. A NaN among
    them would stay for ever, so they are put back then, without asking the device.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for buffer in module.buffers(recurse=False):
                    self.groups[buffer.dtype].append(buffer)

        self.before: list[Tensor] = []

    def keep(self) -> None:
        """Remember what they are now."""
        self.before = self._read()

    @torch.no_grad()
    def put_back(self, omitted: Tensor) -> None:
        """Undo what came after `keep` if `omitted`, 0-dim, is not 0."""
        now = self._read()
        for old, new, group in zip(self.before, now, self.groups.values(), strict=True):
            kept = torch.where(omitted > 0, old, new).split([b.numel() for b in group])
            torch._foreach_copy_(group, [v.view_as(b) for v, b in zip(kept, group, strict=True)])

    @torch.no_grad()
    def _read(self) -> list[Tensor]:
        """A copy of all of them, one vector for each type of number."""
        return [torch.cat([b.flatten() for b in group]) for group in self.groups.values()]


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has running statistics of batch norm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
