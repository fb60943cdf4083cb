"""What the latents of a model hold: nats and activity of each layer and each unit.

A unit is one number of a dense latent `[B, D]`, or one channel of a spatial one `[B, C, *space]`.
Two statistics are taken over data:

* its KL, `E_x[KL]`, summed over space: what the unit tells beyond the layers above it;
* the variance of its posterior mean, `Cov_x(E_q[z])` (Burda et al. 2016, section 3.3): whether
  the unit depends on the data at all. Of a channel it is the largest among its elements.

`E_q[z]` is the posterior mean at one draw of whatever that mean depends on: of the layers below
where inference goes up, of the layers above where it goes down. The noise of that draw counts as
variance, so a unit that only passes on a draw from above is active though its own KL is 0. The KL
is the sharper of the two there: compare inferences by `speaking`, not by `active`.

Means over data, in nats, without gradients; noise is seeded and the model's mode stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from ladder.data import Data, take
from ladder.distributions import ClosedDrawn, Drawn, Flowed, Joined, Normal, Posterior, Sampled
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.noise import seeded

ACTIVE = 0.01  # variance of the posterior mean, Burda et al. 2016
SPEAKING = 0.01  # nats


class Units(NamedTuple):
    """The units of one layer, each a mean over data.

    Attributes:
        kl: KL of each unit in nats, `[U]`; below 0 where a sampled estimate is.
        variance: Variance over data of its posterior mean; of a channel, the largest among its
            elements.
    """

    kl: list[float]
    variance: list[float]

    @property
    def active(self) -> int:
        """Units whose variance is above 0.01: those that depend on the data."""
        return sum(v > ACTIVE for v in self.variance)

    @property
    def speaking(self) -> int:
        """Units whose KL is above 0.01 nats in size: those that tell something of their own.

        A sampled estimate of a KL near 0 has noise of about sqrt(2 KL / N) over N data.
        """
        return sum(abs(v) > SPEAKING for v in self.kl)


class Bits(NamedTuple):
    """What a layer's KL is as a code.

    Attributes:
        bits: KL in bits per datum.
        share: Its part of the KL of all layers; 0 where that is 0.
        per_dim: Bits per dimension of the datum.
    """

    bits: float
    share: float
    per_dim: float


class Moments(NamedTuple):
    """Sums from which `Units` follow, float64.

    Attributes:
        n: Number of data.
        kl: Sum over data of each unit's KL, `[U]`.
        mean: Mean over data of the posterior mean, `[U, *space]`.
        spread: Sum over data of its squared distance from `mean`, `[U, *space]`.
    """

    n: int
    kl: Tensor
    mean: Tensor
    spread: Tensor


def unit_profile(
    model: HierarchicalVAE,
    images: Data,
    batch_size: int = 128,
    draws: int = 1,
    seed: int | None = 0,
) -> dict[str, Units]:
    """KL and activity of every unit, over a set of data.

    Args:
        model: The model.
        images: A tensor or a split of a data set, `[N, *shape]`, uint8 or in [0, 1].
        batch_size: Data at once.
        draws: Passes for each datum, to average the KL and the posterior mean over. The noise of
            the draws adds to the variance in inverse proportion to them.
        seed: Seed of the noise; `None` goes on with torch's generator.

    Returns:
        Units by layer name, top first.

    Raises:
        UserError: If there are no data or no draws.

    References:
        Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2016),
        https://arxiv.org/abs/1509.00519
    """
    if len(images) == 0 or draws < 1:
        raise UserError("unit_profile: needs at least one datum and one draw")
    device = next(model.parameters()).device
    moments: dict[str, Moments] = {}
    with torch.no_grad(), as_evaluated(model, seed):
        for index in torch.arange(len(images)).split(batch_size):
            x = take(images, index, device)
            latents = model(repeat(x, "b ... -> (k b) ...", k=draws))[1]
            moments = merged(moments, observed(latents, draws))
    return {name: units(m) for name, m in moments.items()}


def kl_profile(
    model: HierarchicalVAE, images: Tensor, batch_size: int = 128, seed: int | None = 0
) -> dict[str, float]:
    """KL of every layer in nats per datum, top first; arguments as in `unit_profile`."""
    profile = unit_profile(model, images, batch_size, seed=seed)
    return {name: math.fsum(layer.kl) for name, layer in profile.items()}


def active_units(
    model: HierarchicalVAE,
    images: Data,
    batch_size: int = 128,
    draws: int = 1,
    seed: int | None = 0,
) -> dict[str, int]:
    """Number of active units of every layer, top first; arguments as in `unit_profile`."""
    profile = unit_profile(model, images, batch_size, draws, seed)
    return {name: layer.active for name, layer in profile.items()}


ESTIMATORS: dict[type, str] = {
    Normal: "closed form",
    ClosedDrawn: "closed form",
    Drawn: "sampled",
    Flowed: "sampled",
    Sampled: "sampled",
}


def kl_estimator(latents: Mapping[str, Latent]) -> str:
    """How the KL of these latents was estimated, which follows from their posteriors' types.

    Args:
        latents: Latents by name, as a model returned them.

    Returns:
        `closed form`, `sampled`, or both; empty without posteriors.
    """
    return ", ".join(sorted({_estimator(v.q) for v in latents.values() if v.q is not None}))


def _estimator(q: Posterior) -> str:
    parts = (q.td, q.bu) if isinstance(q, Joined) else (q,)
    return " and ".join(sorted({ESTIMATORS.get(type(v), type(v).__name__) for v in parts}))


def bits_per_dim(nats: float, dims: int) -> float:
    """Bits per dimension of a cost in nats per datum.

    Args:
        nats: Such as -ELBO, or the KL of a layer.
        dims: Numbers in a datum, such as 784.

    Returns:
        The cost as a code length.

    Raises:
        UserError: If `dims` is below 1.
    """
    if dims < 1:
        raise UserError(f"bits_per_dim: a datum has at least 1 dimension, not {dims}")
    return nats / (math.log(2.0) * dims)


def bits_per_layer(kl: Mapping[str, float], dims: int) -> dict[str, Bits]:
    """What each layer's KL is in bits, and its share of all of them.

    Args:
        kl: Nats per datum by layer name, as of `kl_profile` or `evaluate(...).kl`.
        dims: Numbers in a datum.

    Returns:
        Bits by layer name, in the order given.

    Raises:
        UserError: If `dims` is below 1.
    """
    total = math.fsum(kl.values())
    return {
        name: Bits(nats / math.log(2.0), nats / total if total else 0.0, bits_per_dim(nats, dims))
        for name, nats in kl.items()
    }


@contextmanager
def as_evaluated(model: HierarchicalVAE, seed: int | None) -> Iterator[None]:
    """Put the model in evaluation mode and seed the noise; both are as before at the end."""
    training = model.training
    model.eval()
    try:
        with seeded(seed):
            yield
    finally:
        model.train(training)


def observed(latents: Mapping[str, Latent], draws: int = 1) -> dict[str, Moments]:
    """Moments of one batch.

    Args:
        latents: As the model returned them, `[draws * B, ...]`, draws outermost; those without a
            posterior are left out.
        draws: Passes of each datum that the batch holds.

    Returns:
        Moments over the B data, by layer name.
    """
    found = {}
    for name, latent in latents.items():
        if latent.q is None or latent.kl is None:
            continue
        kl = reduce(latent.kl, "(k b) u ... -> b u", "sum", k=draws).double() / draws
        means = latent.q.mean
        if draws > 1:
            means = rearrange(means, "(k b) ... -> k b ...", k=draws).mean(dim=0)
        variance, mean = torch.var_mean(means, dim=0, correction=0)
        n = means.shape[0]
        found[name] = Moments(n, kl.sum(dim=0), mean.double(), variance.double() * n)
    return found


def merged(a: Mapping[str, Moments], b: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments of two batches together; a layer may be missing in one of them."""
    together = {**a, **b}
    for name in a.keys() & b.keys():
        one, two = a[name], b[name]
        n = one.n + two.n
        step = two.mean - one.mean
        together[name] = Moments(
            n,
            one.kl + two.kl,
            one.mean + step * (two.n / n),
            one.spread + two.spread + step.square() * (one.n * two.n / n),
        )
    return together


def units(moments: Moments) -> Units:
    """Statistics of a layer's units from its moments."""
    variance = moments.spread.flatten(1) if moments.spread.dim() > 1 else moments.spread[:, None]
    largest = variance.amax(dim=1) / moments.n
    return Units((moments.kl / moments.n).tolist(), largest.tolist())
