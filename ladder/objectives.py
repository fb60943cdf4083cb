"""What is optimised and what is reported, in nats per datum.

`Terms.loss` is optimised: beta, annealing, free bits and balancing act on it. `Terms.elbo`,
`log_px` and `kl` are reported: nothing acts on them.

    loss = - log p(x|z) + sum_l beta_l gamma_l KL_l

with beta_l a layer's weight (its annealing and its multiplier included), gamma_l its balancing
coefficient and KL_l its KL with free bits, all averaged over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeVar

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from ladder.batch_axis import repeated
from ladder.config import FreeBits
from ladder.distributions import Posterior
from ladder.errors import UserError, suggest
from ladder.latent import Latent, variables
from ladder.likelihoods import Bernoulli, Observation
from ladder.model import HierarchicalVAE

Weight = float | Tensor
T = TypeVar("T")
# Data times samples at once in `iw_elbo`, and values of x in them. On a CPU a dense model is
# fastest with 500 to 1,000 rows, whose features stay in caches, a convolutional one with fewer.
ROWS = {"cpu": (1024, 2**19), "gpu": (8192, 2**22)}


class Terms(NamedTuple):
    """The objective and its parts.

    Attributes:
        loss: What is optimised, 0-dim: batch mean, with every scheme of the KL.
        elbo: log p(x|z) - sum of KLs for each datum, `[B]`, whatever was optimised.
        log_px: log p(x|z) for each datum, `[B]`.
        kl: KL of each layer by name, for each datum, `[B]`; top first.
    """

    loss: Tensor
    elbo: Tensor
    log_px: Tensor
    kl: dict[str, Tensor]


class Balancing(NamedTuple):
    """How `elbo` balances the layers.

    Attributes:
        by: What a layer's fair share of the KL goes by, see `fair_shares`.
        on: 1 balances, 0 does not; a 0-dim tensor lets one compiled graph do both.
    """

    by: Literal["scale", "elements", "equal"] = "scale"
    on: Weight = 1.0


def elbo(
    px: Observation,
    latents: Mapping[str, Latent],
    x: Tensor,
    beta: Weight | Mapping[str, Weight] = 1.0,
    free_bits: FreeBits | Mapping[str, FreeBits | None] | None = None,
    balance: Balancing | None = None,
) -> Terms:
    """Evidence lower bound and the loss made from it.

    Args:
        px: p(x|z), as the model returned it.
        latents: Latents by name, as the model returned them; those without a posterior cost
            nothing.
        x: Data, `[B, *shape]`.
        beta: Weight of all KL terms in the loss, or by layer; a layer not named has 1.
        free_bits: KL that costs nothing in the loss, for all layers, or by layer; a layer not
            named has none.
        balance: How the layers are balanced; `None` for not at all.

    Returns:
        Loss and reported terms. Under DDP the loss is a mean over the rank's own batch, and so
        are free bits with `average: batch` and the means that balancing goes by.

    Raises:
        UserError: If a mapping names a layer that is not there.
    """
    log_px = per_datum(px.log_prob(x))
    elementwise = {name: v.kl for name, v in latents.items() if v.kl is not None}
    kl = {name: per_datum(v) for name, v in elementwise.items()}
    nothing = torch.zeros_like(log_px)
    total = torch.stack([nothing, *kl.values()]).sum(dim=0)
    if isinstance(beta, Mapping) or isinstance(free_bits, Mapping) or balance is not None:
        weights: dict[str, Weight] = by_layer(beta, 1.0, latents)
        floors: dict[str, FreeBits | None] = by_layer(free_bits, None, latents)
        gamma = _coefficients(elementwise, balance)
        costs = [
            weights[n] * gamma[n] * floored(v, floors[n], latents[n].q)
            for n, v in elementwise.items()
        ]
        cost = sum(costs, nothing.mean())
    elif free_bits is None:
        cost = beta * total.mean()
    else:
        costs = [floored(v, free_bits, latents[n].q) for n, v in elementwise.items()]
        cost = beta * sum(costs, nothing.mean())
    return Terms(cost - log_px.mean(), log_px - total, log_px, kl)


def by_layer(value: T | Mapping[str, T], default: T, names: Iterable[str]) -> dict[str, T]:
    """One value for each layer, from one for all or a mapping that may leave some out.

    Args:
        value: For all layers, or by layer.
        default: For layers that the mapping leaves out.
        names: The layers.

    Returns:
        Values by name, in the order of `names`.

    Raises:
        UserError: If the mapping names another layer.
    """
    names = list(names)
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            raise UserError(f"elbo: no layer '{name}'{suggest(name, names)}")
    return {name: value.get(name, default) for name in names}


def _coefficients(
    elementwise: Mapping[str, Tensor], balancing: Balancing | None
) -> Mapping[str, Weight]:
    if balancing is None:
        return dict.fromkeys(elementwise, 1.0)
    kl = {name: per_datum(v) for name, v in elementwise.items()}
    gamma = balance(kl, fair_shares(elementwise, balancing.by))
    on = balancing.on
    return {name: on * v + (1.0 - on) for name, v in gamma.items()}


def balance(kl: Mapping[str, Tensor], alpha: Mapping[str, float]) -> dict[str, Tensor]:
    """Balancing coefficients: gamma_l ~ (mean |KL_l| + 0.01) / alpha_l, of mean one.

    A layer with more than its share pays more, one that is about to collapse pays less; NVAE
    multiplies the KL terms by them while the annealing is below 1.

    Args:
        kl: KL of each layer by name, for each datum, `[B]`, in nats.
        alpha: Fair share of each layer by name; only ratios matter.

    Returns:
        Coefficients by name, 0-dim and without gradient.

    References:
        NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat, Kautz, 2020), sec. 3.2 and
        app. A, https://arxiv.org/abs/2007.03898
    """
    excess = torch.stack([(v.detach().abs().mean() + 0.01) / alpha[n] for n, v in kl.items()])
    return dict(zip(kl, (excess / excess.mean()).unbind(), strict=True))


def fair_shares(
    values: Mapping[str, Tensor], by: Literal["scale", "elements", "equal"] = "scale"
) -> dict[str, float]:
    """Shares alpha_l of the KL that balancing aims at, the least of them 1.

    Args:
        values: A latent of each layer, or its elementwise KL, by name: `[B, D]` (one position)
            or `[B, C, *space]`.
        by: `scale` divides a layer's positions by the number of layers that have as many (NVAE);
            `elements` counts its latent elements (Efficient-VDVAE); `equal` is 1 for each.

    Returns:
        Shares by name.
    """
    positions = [math.prod(v.shape[2:]) for v in values.values()]
    if by == "scale":
        shares = [p / positions.count(p) for p in positions]
    elif by == "elements":
        shares = [float(math.prod(v.shape[1:])) for v in values.values()]
    else:
        shares = [1.0 for _ in positions]
    return {name: share / min(shares) for name, share in zip(values, shares, strict=True)}


def floored(kl: Tensor, free_bits: FreeBits | None, q: Posterior | None = None) -> Tensor:
    """A layer's KL with every unit below the floor raised to it, so that it has no gradient.

    Args:
        kl: Elementwise KL, `[B, C, ...]`.
        free_bits: The floor, what it holds for, and whether it meets the batch's mean or each
            sample; `None` for no floor.
        q: The layer's posterior, which says of how many variables the layer is.

    Returns:
        Batch mean summed over the layer, 0-dim.
    """
    if free_bits is None:
        return per_datum(kl).mean()
    if free_bits.per == "layer":
        units = reduce(kl, "b ... -> b 1", "sum")
    elif free_bits.per == "variable":
        units = torch.stack([per_datum(part) for part in variables(q, kl)], dim=1)
    elif free_bits.per == "channel":
        units = reduce(kl, "b c ... -> b c", "sum")
    else:
        units = kl.flatten(1)
    if free_bits.average == "batch":
        units = reduce(units, "b u -> 1 u", "mean")
    return units.clamp(min=free_bits.nats).sum(dim=1).mean()


def iw_elbo(model: HierarchicalVAE, x: Tensor, samples: int, rows: int | None = None) -> Tensor:
    """Importance-weighted bound log 1/K sum_k p(x, z_k) / q(z_k | x) (Burda et al. 2016, eq. 8).

    Uses the joint log-ratio at the draws whatever estimator the posterior has, so it bounds
    log p(x) of the structured posterior and rises to it with K. What no noise reaches of the
    upward pass is computed once for each datum. Under `torch.no_grad()` memory is bounded by
    `rows`; with gradients the graph of all K samples is kept.

    Args:
        model: The model.
        x: Data, `[B, *shape]`.
        samples: Number of importance samples K.
        rows: Data times samples that pass through the model at once; at least B do. `None` for
            what a CPU's caches hold, 668 of MNIST and 170 of CIFAR-10, and eight times as many
            on a GPU (`ROWS`).

    Returns:
        The bound for each datum, `[B]`, in nats.

    Raises:
        UserError: If K is below 1.

    References:
        Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2016),
        https://arxiv.org/abs/1509.00519
    """
    if not isinstance(samples, int):
        raise UserError(f"iw_elbo: samples should be a whole number, not {samples!r}")
    if samples < 1:
        raise UserError(f"iw_elbo: samples should be at least 1, not {samples}")
    b = x.shape[0]
    if rows is None:
        most, values = ROWS["cpu" if x.device.type == "cpu" else "gpu"]
        rows = min(most, values * b // x.numel())
    chunk = min(samples, max(1, rows // b))
    once = model.prepare(x)
    many = repeated(once, chunk)  # the same for all chunks but the last, which may have fewer
    total = x.new_full((b,), -math.inf)
    for done in range(0, samples, chunk):
        k = min(chunk, samples - done)
        px, latents = model.draw(k * b, many if k == chunk else repeated(once, k))
        weights = rearrange(log_weight(px, latents, x, k), "(k b) -> k b", b=b)
        total = torch.logaddexp(total, weights.logsumexp(dim=0))
    return total - math.log(samples)


def log_weight(
    px: Observation, latents: Mapping[str, Latent], x: Tensor, draws: int = 1
) -> Tensor:
    """log p(x|z) + sum_l log p(z_l | .) - log q(z_l | .) at the draws.

    Args:
        px: p(x|z) of every draw: the first of each datum, then the second of each, `[draws B]`.
        latents: Their latents by name.
        x: Data, `[B, *shape]`.
        draws: Draws for each datum.

    Returns:
        The weights in nats, `[draws B]`.
    """
    weight = _log_px(px, x, draws)
    for latent in latents.values():
        if latent.q is not None:
            ratio = latent.p.log_prob(latent.z) - latent.q.log_prob(latent.z)
            weight = weight + per_datum(ratio)
    return weight


def _log_px(px: Observation, x: Tensor, draws: int) -> Tensor:
    if not isinstance(px, Bernoulli):
        return per_datum(px.log_prob(repeated(x, draws)))
    # x l - log(1 + exp(l)), without x repeated, and in half the passes of its `log_prob`.
    logits = px.logits.unflatten(0, (draws, -1))
    cost = F.softplus(logits, threshold=80.0).addcmul_(x, logits, value=-1.0)
    return -per_datum(cost.flatten(0, 1))


def per_datum(values: Tensor) -> Tensor:
    """Sum over every axis but the batch, `[B, ...] -> [B]`."""
    return values.flatten(1).sum(dim=1)
