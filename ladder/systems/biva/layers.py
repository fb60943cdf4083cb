"""The downward pass: the layer of two variables, and the parts of those that have one.

State: outputs of the generative blocks of the layer above, `[B, filters, H, W]` each; above the
top, the parameters of p(z_L), `[B, 2 N, ...]`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ladder.distributions import Normal, Sampled
from ladder.latent import Latent, check_given, draw, join
from ladder.merges import BothWays
from ladder.systems.biva.blocks import Chain, GatedBlock

State = tuple[Tensor, ...]


class Last(nn.Module):
    """A network on the last of the features above.

    Args:
        net: `[B, filters, H, W] -> ...`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, state: State) -> Any:
        """Return net(d)."""
        return self.net(state[-1])


class Merge(nn.Module):
    """q(z_l | x, z_>l) from features of both passes, with the sampled KL, as published.

    Args:
        block: Block of the upward features; those from above are its auxiliary input.
        posterior: `features -> Normal`.
    """

    def __init__(self, block: GatedBlock, posterior: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.posterior = posterior

    def forward(self, h: State, evidence: Tensor, p: Normal) -> Sampled:
        """Return the posterior; the prior has no say."""
        return Sampled(*self.posterior(self.block(evidence, h[-1])))


class TopMerge(Merge):
    """q(z_L | x), where there are no features from above."""

    def forward(self, h: Any, evidence: Tensor, p: Normal) -> Sampled:
        """Return the posterior."""
        return Sampled(*self.posterior(self.block(evidence)))


class Generate(nn.Module):
    """Combine: z through the layer's blocks, each of which sees that above it in its place.

    Args:
        widen: `z -> [B, channels, H, W]`.
        chain: The blocks.
    """

    def __init__(self, widen: nn.Module, chain: Chain) -> None:
        super().__init__()
        self.widen = widen
        self.chain = chain

    def forward(self, h: State, z: Tensor) -> State:
        """Return the outputs of all blocks."""
        return self.chain(self.widen(z), h)  # type: ignore[no-any-return]


class TopGenerate(Generate):
    """Combine of the top layer, whose blocks have nothing above them."""

    def forward(self, h: Any, z: Tensor) -> State:
        """Return the outputs of all blocks."""
        return self.chain(self.widen(z), [None] * len(self.chain.blocks))  # type: ignore[no-any-return]


class Independent(nn.Module):
    """p(z^BU | d): independent of z^TD given the layers above.

    Args:
        prior: `d -> Normal`.
    """

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, d: Tensor, td: Tensor) -> Normal:
        """Return the prior of z^BU."""
        p: Normal = self.prior(d)
        return p


class Conditional(nn.Module):
    """p(z^BU | z^TD, d).

    Args:
        widen: `z^TD -> [B, channels, H, W]`.
        block: Block of that; d is its auxiliary input.
        prior: `features -> Normal`.
    """

    def __init__(self, widen: nn.Module, block: GatedBlock, prior: nn.Module) -> None:
        super().__init__()
        self.widen = widen
        self.block = block
        self.prior = prior

    def forward(self, d: Tensor, td: Tensor) -> Normal:
        """Return the prior of z^BU."""
        p: Normal = self.prior(self.block(self.widen(td).to(d.dtype), d))
        return p


class Bidirectional(nn.Module):
    """A layer of two variables; its latent is [z^TD, z^BU], joined on axis 1.

    Args:
        td_prior: `d -> Normal`, p(z^TD | d), where d are the last features above.
        bu_prior: `(d, z^TD) -> Normal`.
        merge: `(state, evidence, p) -> posterior` of z^TD.
        combine: `(state, z) -> state`.
    """

    def __init__(
        self, td_prior: nn.Module, bu_prior: nn.Module, merge: nn.Module, combine: nn.Module
    ) -> None:
        super().__init__()
        self.td_prior = td_prior
        self.bu_prior = bu_prior
        self.merge = merge
        self.combine = combine

    def forward(
        self,
        state: State,
        evidence: BothWays | None = None,
        z: Tensor | None = None,
        temperature: float | Tensor = 1.0,
    ) -> tuple[State, Latent]:
        """Turn the state above into the state below; see `StochasticLayer.forward`."""
        p = self.td_prior(state[-1])
        z_td, z_bu = (None, None) if z is None else halves(z, p)
        q_td, q_bu = None, None
        if evidence is not None:
            q_td, q_bu = self.merge(state, evidence.up, p), evidence.drawn
        td = draw(p, q_td, z_td, temperature)
        bu = draw(self.bu_prior(state[-1], td.z), q_bu, z_bu, temperature)
        latent = join(td, bu)
        latent = latent if z is None else latent._replace(z=z)
        return self.combine(state, latent.z), latent


def halves(z: Tensor, p: Normal) -> tuple[Tensor, Tensor]:
    """Split a given [z^TD, z^BU], of which both have the size of the prior of either."""
    batch, n, *space = p.mean.shape
    check_given(z, [batch, 2 * n, *space])
    return z[:, :n], z[:, n:]
