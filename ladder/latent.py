"""One stochastic variable as a layer hands it back, and the one rule by which z is chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ladder.distributions import Drawn, Joined, Normal, Posterior
from ladder.errors import UserError


class Latent(NamedTuple):
    """What a stochastic layer hands back.

    Attributes:
        z: The value that everything below conditions on, `[B, *latent]`.
        p: Its prior given all that is above.
        q: Its posterior, or `None` when z was given or came from the prior.
        kl: Elementwise estimate of KL(q || p) in nats, shaped like z, or `None` with `q`.
    """

    z: Tensor
    p: Normal
    q: Posterior | None = None
    kl: Tensor | None = None


def draw(
    p: Normal,
    q: Posterior | None = None,
    z: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Latent:
    """Choose z: as given, else from the posterior, else from the prior.

    Args:
        p: Prior of z.
        q: Posterior of z, if there is evidence.
        z: A value to take as it is.
        temperature: Multiplies the prior's standard deviation; the posterior's stays.

    Returns:
        The latent; `q` and `kl` are set only when z came from the posterior.

    Raises:
        UserError: If z has another shape than its prior.
    """
    if z is not None:
        check_given(z, list(p.mean.shape))
        return Latent(z, p)
    if q is not None:
        z = q.rsample()
        return Latent(z, p, q, q.kl(p, z))
    return Latent(p.rsample(temperature), p)


def check_given(z: Tensor, shape: list[int]) -> None:
    """Refuse a given z of another shape than its prior's."""
    if list(z.shape) != shape:
        raise UserError(
            f"a latent is given as {list(z.shape)}, but its prior has {shape}; give as many values"
        )


def join(td: Latent, bu: Latent) -> Latent:
    """Make one latent of the two variables of a layer with bidirectional inference.

    Args:
        td: The variable that is drawn going down, `[B, C_td, ...]`.
        bu: The one that was drawn going up, `[B, C_bu, ...]`, with a `Drawn` posterior.

    Returns:
        The latent over [z^TD, z^BU], joined on axis 1; `q` and `kl` are set if both have them.
    """
    z = torch.cat([td.z, bu.z], dim=1)
    p = Normal(*(torch.cat(pair, dim=1) for pair in zip(td.p, bu.p, strict=True)))
    if td.kl is None or bu.kl is None:
        return Latent(z, p)
    assert isinstance(td.q, Normal)
    assert isinstance(bu.q, Drawn)
    return Latent(z, p, Joined(td.q, bu.q), torch.cat([td.kl, bu.kl], dim=1))


def variables(q: Posterior | None, values: Tensor) -> tuple[Tensor, ...]:
    """Split what is shaped like a latent into its variables: two where `join` made one of two."""
    return q.parts(values) if isinstance(q, Joined) else (values,)
