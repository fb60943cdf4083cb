"""The bottom-up networks of declared hierarchies: `x -> {layer name: evidence}`.

A rung turns what lies below into what the rung above reads and the evidence for its own layer. The
three kinds of inference are three kinds of rung:

* `DrawnRung`, bottom-up: z is drawn here, and the rung above reads it;
* `FeatureRung`, ladder: deterministic; z is drawn in the top-down pass from this evidence;
* `BothRung`, bidirectional: one part of z is drawn here, the other in the top-down pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ladder.distributions import ClosedDrawn, Drawn, Normal
from ladder.execution import Caller
from ladder.merges import BothWays

# How the KL of a posterior drawn going up is estimated.
DRAWS: dict[str, type[Drawn]] = {"sampled": Drawn, "closed_form": ClosedDrawn}


class DrawnRung(nn.Module):
    """q(z_l | below) and the draw from it.

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


class FeatureRung(nn.Module):
    """Deterministic features d_l and the evidence made from them.

    Args:
        net: `below -> d_l`, which the rung above reads.
        evidence: `d_l -> evidence`, a Gaussian or the features as they are.
    """

    def __init__(self, net: nn.Module, evidence: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.evidence = evidence

    def forward(self, below: Tensor) -> tuple[Tensor, Normal | Tensor]:
        """Return d_l and the evidence."""
        d = self.net(below)
        return d, self.evidence(d)


class BothRung(nn.Module):
    """A draw of z_l's one part, and evidence for the other that has seen it.

    Args:
        rung: Draws going up.
        evidence: `[z_l^BU, h] -> evidence` for the part drawn going down.
    """

    def __init__(self, rung: DrawnRung, evidence: nn.Module) -> None:
        super().__init__()
        self.rung = rung
        self.evidence = evidence

    def forward(self, below: Tensor) -> tuple[Tensor, BothWays]:
        """Return what the rung above reads, [z_l^BU, h], and both parts' evidence."""
        up, drawn = self.rung(below)
        return up, BothWays(self.evidence(up), drawn)


class BottomUp(Caller):
    """The upward pass.

    Bottom-up inference is q(z_1 | x) prod_l q(z_l | z_{l-1}, h_{l-1}) here already; the other two
    kinds leave all or part of z_l to the top-down pass.

    Args:
        rungs: A rung for each layer by name, from the data up.
        stem: What the first rung reads, made from x: flat, or padded.
    """

    def __init__(self, rungs: Mapping[str, nn.Module], stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.rungs = nn.ModuleDict(rungs)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Climb from `x`, `[B, *shape]`; evidence by layer name."""
        below = self.stem(x)
        evidence: dict[str, Any] = {}
        for name, rung in self.rungs.items():
            below, evidence[name] = self.call(rung, below)
        return evidence
