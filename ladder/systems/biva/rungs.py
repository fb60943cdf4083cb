"""The upward pass, rung by rung, for the three kinds of inference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ladder.distributions import Drawn, Normal, Sampled
from ladder.inference import Drawing
from ladder.merges import BothWays
from ladder.systems.biva.blocks import Chain, GatedBlock


class Below(NamedTuple):
    """What a rung of ladder or bottom-up inference reads.

    Attributes:
        x: Data, features or draws.
        skip: Features of the rung below; `None` at the data.
    """

    x: Tensor
    skip: Tensor | None = None


class BothBelow(NamedTuple):
    """What a rung of bidirectional inference reads.

    Attributes:
        bu: Data, or what the draw of the rung below was widened to.
        td: Data, or deterministic features of the rung below.
        skip: Both features of the rung below; `None` at the data.
    """

    bu: Tensor
    td: Tensor
    skip: Tensor | None = None


class LadderRung(nn.Module):
    """Ladder: features b_l, which are the evidence and what the rung above reads.

    Args:
        chain: The rung's blocks.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, below: Below) -> tuple[Below, Tensor]:
        """Return b_l, twice."""
        b = self.chain.last(below.x, below.skip)
        return Below(b, b), b


class BottomUpRung(Drawing):
    """Bottom-up: q(z_l | b_l) and the draw from it, which the rung above reads.

    Args:
        chain: The rung's blocks.
        posterior: `b_l -> Normal`.
        widen: `z -> [B, channels, H, W]`.
    """

    def __init__(self, chain: Chain, posterior: nn.Module, widen: nn.Module) -> None:
        super().__init__()
        self.chain = chain
        self.posterior = posterior
        self.widen = widen

    def prepare(self, below: Below) -> tuple[Tensor, Normal]:
        """Return b_l and the posterior."""
        b = self.chain.last(below.x, below.skip)
        return b, self.posterior(b)

    def draw(self, prepared: tuple[Tensor, Normal]) -> tuple[Below, Drawn]:
        """Return what the rung above reads, and the drawn posterior."""
        b, q = prepared
        z = q.rsample()
        # z is float32 even where autocast made b bfloat16.
        return Below(self.widen(z).to(b.dtype), b), Drawn(q, z)


class Climb(nn.Module):
    """Bidirectional: both features of a rung, b_l from draws and t_l from t_{l-1} and b_l.

    Args:
        bu: Blocks of b_l.
        td: Blocks of t_l.
    """

    def __init__(self, bu: Chain, td: Chain) -> None:
        super().__init__()
        self.bu = bu
        self.td = td

    def forward(self, below: BothBelow) -> tuple[Tensor, Tensor]:
        """Return b_l and t_l."""
        b = self.bu.last(below.bu, below.skip)
        return b, self.td.last(below.td, b)


class BidirectionalRung(Drawing):
    """Bidirectional: z_l^BU is drawn here, and t_l is evidence for z_l^TD.

    Args:
        climb: The rung's blocks.
        posterior: `b_l -> Normal`, q(z_l^BU | x, z_<l^BU).
        widen: `z -> [B, channels, H, W]`.
    """

    def __init__(self, climb: Climb, posterior: nn.Module, widen: nn.Module) -> None:
        super().__init__()
        self.climb = climb
        self.posterior = posterior
        self.widen = widen

    def prepare(self, below: BothBelow) -> tuple[Tensor, Tensor, Normal]:
        """Return b_l, t_l and the posterior of z_l^BU."""
        b, t = self.climb(below)
        return b, t, self.posterior(b)

    def draw(self, prepared: tuple[Tensor, Tensor, Normal]) -> tuple[BothBelow, BothWays]:
        """Return what the rung above reads, and both variables' evidence."""
        b, t, q = prepared
        z = q.rsample()
        above = BothBelow(self.widen(z).to(b.dtype), t, torch.cat([b, t], dim=1))
        return above, BothWays(t, Drawn(q, z))


class TopRung(nn.Module):
    """Bidirectional: q(z_L | x, z_<L^BU) from both features.

    Args:
        climb: The rung's blocks.
        merge: Block of both, side by side.
        posterior: `features -> Normal`.
        td_first: Whether t_L comes before b_L.
    """

    def __init__(
        self, climb: Climb, merge: GatedBlock, posterior: nn.Module, td_first: bool
    ) -> None:
        super().__init__()
        self.climb = climb
        self.merge = merge
        self.posterior = posterior
        self.td_first = td_first

    def forward(self, below: BothBelow) -> tuple[None, Normal]:
        """Return nothing for above, and the posterior."""
        b, t = self.climb(below)
        both = torch.cat([t, b] if self.td_first else [b, t], dim=1)
        return None, Sampled(*self.posterior(self.merge(both)))
