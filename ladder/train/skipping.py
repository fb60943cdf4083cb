"""Steps that are left out, because their gradient is far too large or not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ladder.config import TrainConfig

DECAY = 0.99  # of the running mean of gradient norms
PATIENCE = 20  # steps in a row that are not finite, after which training has failed
KEPT = ("mean", "skipped", "row", "broken")  # in checkpoints


class Skipping:
    """Decides on the device, without asking it, whether a step is left out.

    A step is left out if its gradient norm before clipping is `skip_norm` or more (as published:
    should all norms be that large, nothing is ever learned again), or more than `skip_relative`
    times a running mean of the norms. What is left out enters that mean as if it were just at the
    threshold, so the threshold grows by 1 + 0.01 (`skip_relative` - 1) a step until steps pass
    again, and no level of the norm can freeze training.

    Args:
        train: The training section.
        device: Where gradients are.

    Attributes:
        mean: Running mean of the norm; 0 before the first step.
        skipped: Number of steps left out so far.
        row: Number of steps in a row, up to now, that were left out.
        broken: Number of steps in a row, up to now, that were not finite.
    """

    def __init__(self, train: TrainConfig, device: torch.device) -> None:
        self.on = train.skip_norm is not None or train.skip_relative is not None
        self.norm, self.relative = train.skip_norm, train.skip_relative
        self.mean = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device, dtype=torch.int64)
        self.row, self.broken = torch.zeros_like(self.skipped), torch.zeros_like(self.skipped)

    @torch.no_grad()
    def decide(self, norm: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """Take up a step.

        Args:
            norm: Gradient norm before clipping, 0-dim.
            finite: Whether loss and gradient are finite, 0-dim.

        Returns:
            Whether the step is left out, and whether training has failed, 0-dim.
        """
        if not self.on:
            return ~finite, ~finite
        fine, limit = finite.clone(), torch.full_like(self.mean, torch.inf)
        if self.norm is not None:
            fine &= norm < self.norm
        if self.relative is not None:
            limit = torch.where(self.mean > 0, self.relative * self.mean, limit)
            fine &= norm <= limit
        seen = torch.where(finite, torch.minimum(norm, limit), self.mean)
        # In place: graphs of a GPU's work know tensors by where they lie.
        self.mean.copy_(torch.where(self.mean > 0, torch.lerp(seen, self.mean, DECAY), seen))
        self.skipped += ~fine
        self.row.copy_(torch.where(fine, 0, self.row + 1))
        self.broken.copy_(torch.where(finite, 0, self.broken + 1))
        return ~fine, self.broken >= PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: getattr(self, name).cpu() for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        for name in KEPT:
            getattr(self, name).copy_(state[name])
