"""The bottom-up networks of declared hierarchies: `x -> {layer name: evidence}`.

A rung turns what lies below into what the rung above reads and the evidence for its own layer. The
three kinds of inference are three kinds of rung:

* `DrawnRung`, bottom-up: z is drawn here, and the rung above reads it;
* `FeatureRung`, ladder: deterministic; z is drawn in the top-down pass from this evidence;
* `BothRung`, bidirectional: one part of z is drawn here, the other in the top-down pass.

Those that draw are `Drawing`: they go in two steps, of which no noise reaches the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ladder.distributions import ClosedDrawn, Drawn, Normal
from ladder.merges import BothWays
from ladder.model import Upward

# How the KL of a posterior drawn going up is estimated.
DRAWS: dict[str, type[Drawn]] = {"sampled": Drawn, "closed_form": ClosedDrawn}


class Drawing(nn.Module):
    """A rung that draws."""

    def prepare(self, below: Any) -> Any:
        """Return the posterior, and what else the draw's step needs."""
        raise NotImplementedError

    def draw(self, prepared: Any) -> tuple[Any, Any]:
        """Draw, and return what the rung above reads, and the evidence."""
        raise NotImplementedError

    def forward(self, below: Any) -> tuple[Any, Any]:
        """Return what the rung above reads, and the evidence."""
        return self.draw(self.prepare(below))


class DrawnRung(Drawing):
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

    def prepare(self, below: Tensor) -> tuple[Tensor, Normal]:
        """Return h and the posterior."""
        h = self.net(below)
        return h, self.posterior(h)

    def draw(self, prepared: tuple[Tensor, Normal]) -> tuple[Tensor, Drawn]:
        """Return what the rung above reads, [z_l, h], and the drawn posterior."""
        h, q = prepared
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


class BothRung(Drawing):
    """A draw of z_l's one part, and evidence for the other that has seen it.

    Args:
        rung: Draws going up.
        evidence: `[z_l^BU, h] -> evidence` for the part drawn going down.
    """

    def __init__(self, rung: DrawnRung, evidence: nn.Module) -> None:
        super().__init__()
        self.rung = rung
        self.evidence = evidence

    def prepare(self, below: Tensor) -> tuple[Tensor, Normal]:
        """Return h and the posterior of z_l^BU."""
        return self.rung.prepare(below)

    def draw(self, prepared: tuple[Tensor, Normal]) -> tuple[Tensor, BothWays]:
        """Return what the rung above reads, [z_l^BU, h], and both parts' evidence."""
        up, drawn = self.rung.draw(prepared)
        return up, BothWays(self.evidence(up), drawn)


class BottomUp(Upward):
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
        return self._climb(self.stem(x), self.rungs.items())[1]

    def prepare(self, x: Tensor) -> tuple[Any, dict[str, Any]]:
        """Climb to the first draw; what its rung prepared, and the evidence below it."""
        sure, rest = self._split()
        below, evidence = self._climb(self.stem(x), sure)
        return rest[0][1].prepare(below) if rest else None, evidence

    def draw(self, prepared: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        """Climb on from there; evidence by layer name."""
        found, evidence = prepared
        _, rest = self._split()
        if not rest:
            return evidence
        (name, first), *above = rest
        below, drawn = first.draw(found)
        return {**evidence, name: drawn, **self._climb(below, above)[1]}

    def _climb(
        self, below: Any, rungs: Iterable[tuple[str, nn.Module]]
    ) -> tuple[Any, dict[str, Any]]:
        evidence: dict[str, Any] = {}
        for name, rung in rungs:
            below, evidence[name] = self.call(rung, below)
        return below, evidence

    def _split(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """The rungs below the first that draws, and those from there."""
        rungs = list(self.rungs.items())
        below = list(takewhile(lambda item: not isinstance(item[1], Drawing), rungs))
        return below, rungs[len(below) :]
