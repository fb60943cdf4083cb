"""One stochastic variable as a layer hands it back, and the one rule by which z is chosen."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ladder.distributions import Normal, Posterior
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
        if z.shape != p.mean.shape:
            raise UserError(
                f"a latent is given as {list(z.shape)}, but its prior has {list(p.mean.shape)}; "
                "give as many values"
            )
        return Latent(z, p)
    if q is not None:
        z = q.rsample()
        return Latent(z, p, q, q.kl(p, z))
    return Latent(p.rsample(temperature), p)
