"""The bottom-up networks of declared hierarchies: `x -> {layer name: evidence}`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ladder.distributions import ClosedDrawn, Drawn

# How the KL of a posterior drawn going up is estimated.
DRAWS: dict[str, type[Drawn]] = {"sampled": Drawn, "closed_form": ClosedDrawn}


class Rung(nn.Module):
    """One step up: q(z_l | below) and the draw from it.

    Args:
        net: `below -> h`, deterministic features.
        posterior: `h -> Normal`.
        drawn: The type of the drawn posterior, a value of `DRAWS`.
    """

    def __init__(self, net: nn.Module, posterior: nn.Module, drawn: type[Drawn]) -> None:
        super().__init__()
        self.net = net
        self.posterior = posterior
        self.drawn = drawn

    def forward(self, below: Tensor) -> tuple[Tensor, Drawn]:
        """Return what the rung above reads, [z_l, h], and the drawn posterior."""
        h = self.net(below)
        q = self.posterior(h)
        z = q.rsample()
        # z is float32 even where autocast made h bfloat16.
        return torch.cat([z.to(h.dtype), h], dim=1), self.drawn(q, z)


class BottomUp(nn.Module):
    """Bottom-up inference, q(z_1 | x) prod_l q(z_l | z_{l-1}, h_{l-1}): z is drawn going up.

    Args:
        rungs: A `Rung` for each layer by name, from the data up.
    """

    def __init__(self, rungs: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.rungs = nn.ModuleDict(rungs)

    def forward(self, x: Tensor) -> dict[str, Drawn]:
        """Draw every latent of `x`, `[B, *shape]`; the evidence is the drawn posterior."""
        below = x.flatten(1)
        evidence: dict[str, Drawn] = {}
        for name, rung in self.rungs.items():
            below, evidence[name] = rung(below)
        return evidence
