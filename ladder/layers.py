"""The contract of a stochastic layer, and the layer that most hierarchies use.

A stochastic layer is one z_l of the top-down path: any module with

    forward(state, evidence=None, z=None, temperature=1.0) -> (state, Latent)

`state` is what flows down and `evidence` what the bottom-up pass says about z_l; both are opaque
to the spine, and each system documents its own. A layer never knows its name, its index, whether
it is the top or whether the model trains: "top" is a choice of parts, and where z comes from is an
argument. A system whose layer is different writes its own short class in its own file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ladder.latent import Latent, draw


class StochasticLayer(nn.Module):
    """A layer with four slots.

    Args:
        transition: `state -> h`.
        prior: `h -> Normal`, p(z_l | state).
        merge: `(h, evidence, p) -> posterior`, q(z_l | state, x).
        combine: `(h, z) -> state`, what the layers below see.
    """

    def __init__(
        self, transition: nn.Module, prior: nn.Module, merge: nn.Module, combine: nn.Module
    ) -> None:
        super().__init__()
        self.transition = transition
        self.prior = prior
        self.merge = merge
        self.combine = combine

    def forward(
        self,
        state: Any,
        evidence: Any = None,
        z: Tensor | None = None,
        temperature: float | Tensor = 1.0,
    ) -> tuple[Any, Latent]:
        """Turn the state above into the state below.

        Args:
            state: What the layers above left.
            evidence: What the bottom-up pass says about this z; `None` draws from the prior.
            z: A value to take as it is, `[B, *latent]`.
            temperature: Multiplies the prior's standard deviation when z comes from the prior.

        Returns:
            The state below and this layer's latent.
        """
        h = self.transition(state)
        p = self.prior(h)
        q = None if evidence is None else self.merge(h, evidence, p)
        latent = draw(p, q, z, temperature)
        return self.combine(h, latent.z), latent


class Markov(nn.Module):
    """Combine by forgetting: the layer below sees z alone, p(z_{l-1} | z_l)."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return z, whatever h was."""
        return z


class Residual(nn.Module):
    """Combine by adding: the layers below see all layers above through one stream.

    Args:
        net: `z -> [B, C_h, ...]`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return h + net(z)."""
        added: Tensor = self.net(z)
        return h + added


class Skip(nn.Module):
    """Combine by a network on both: the layers below see z and, beside it, all layers above.

    Args:
        net: `[B, C_h + C_z, ...] -> state`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return net([h, z])."""
        state: Tensor = self.net(torch.cat([h, z], dim=1))
        return state
