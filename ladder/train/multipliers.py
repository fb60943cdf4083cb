"""Multipliers that hold the KL of layers at their `kl_target`.

The KL of a held layer costs m times more, where after every step

    k <- k + (1 - DECAY) (KL - k)         running mean, nats; begins at the target t
    e  = (k - t) / (|k| + t)              error in [-1, 1], whatever the scale of t
    s <- s + a rate e                     within +-LARGEST; begins at 0
    m  = exp(a (s + PUSH e))

and a is the layer's annealing, at most 1: while that is 0 the KL costs nothing whatever m is, so
the multiplier waits. A layer above its target pays more until it is there, one below pays less,
down to next to nothing; s remembers what it takes, PUSH e damps the way there. m is never
negative: it frees a layer, but cannot make a model use what is of no use to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DECAY = 0.9  # of the running mean, which only has to smooth the noise of batches
PUSH = 3.0  # without it a layer overshoots its target several times before it settles
LARGEST = math.log(1e4)  # of |s|: enough to switch a KL off, or everything else


class Multipliers:
    """The multipliers of a run, on its device.

    Of several processes each must be given the KL of the whole batch, or their multipliers part.

    Args:
        targets: Nats by name of the held layers.
        rate: Most that s changes in one step.
        device: Where the KL is measured.

    Attributes:
        log: s of every held layer, `[held]`.
        mean: Running mean of the KL of every held layer in nats, `[held]`.
    """

    def __init__(self, targets: Mapping[str, float], rate: float, device: torch.device) -> None:
        self.names = list(targets)
        self.rate = rate
        self.targets = torch.tensor(list(targets.values()), device=device)
        self.log = torch.zeros_like(self.targets)
        self.mean = self.targets.clone()

    def factors(self, annealing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The multipliers m.

        Args:
            annealing: The layers' annealing by name, 0-dim.

        Returns:
            By name of the held layers, 0-dim.
        """
        log = self._eased(self.log + PUSH * self._error(self.mean), annealing)
        return dict(zip(self.names, log.exp().unbind(), strict=True))

    @torch.no_grad()
    def update(
        self, kl: Mapping[str, Tensor], annealing: Mapping[str, Tensor], failed: Tensor
    ) -> None:
        """Take up the KL of a step; nothing is read back to the host.

        Args:
            kl: Reported KL of each held layer by name, for each datum, `[B]`, or its mean.
            annealing: The layers' annealing at this step by name, 0-dim.
            failed: 0-dim, on the device; nothing changes where it is 1.
        """
        now = torch.stack([kl[name].mean() for name in self.names])
        mean = torch.lerp(self.mean, now, 1.0 - DECAY)
        log = self.log + self.rate * self._eased(self._error(mean), annealing)
        # In place: graphs of a GPU's work know tensors by where they lie.
        self.mean.copy_(torch.where(failed > 0, self.mean, mean))
        self.log.copy_(torch.where(failed > 0, self.log, log.clamp(-LARGEST, LARGEST)))

    def _error(self, mean: Tensor) -> Tensor:
        return (mean - self.targets) / (mean.abs() + self.targets)

    def _eased(self, values: Tensor, annealing: Mapping[str, Tensor]) -> Tensor:
        # One by one: a scalar on the host may meet the device without a copy, a vector may not.
        pairs = zip(self.names, values.unbind(), strict=True)
        return torch.stack([annealing[name].float().clamp(max=1.0) * v for name, v in pairs])

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"names": self.names, "log": self.log.cpu(), "mean": self.mean.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        if state["names"] != self.names:
            raise ValueError(f"kl_target is for {self.names}, there for {state['names']}")
        self.log.copy_(state["log"])
        self.mean.copy_(state["mean"])
