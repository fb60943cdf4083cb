"""What is optimised and what is reported, in nats per datum.

`Terms.loss` is optimised: beta, annealing and free bits act on it. `Terms.elbo`, `log_px` and `kl`
are reported: nothing acts on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from ladder.config import FreeBits
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.likelihoods import Observation
from ladder.model import HierarchicalVAE


class Terms(NamedTuple):
    """The objective and its parts.

    Attributes:
        loss: What is optimised, 0-dim: batch mean, with beta, annealing and free bits.
        elbo: log p(x|z) - sum of KLs for each datum, `[B]`, whatever was optimised.
        log_px: log p(x|z) for each datum, `[B]`.
        kl: KL of each layer by name, for each datum, `[B]`; top first.
    """

    loss: Tensor
    elbo: Tensor
    log_px: Tensor
    kl: dict[str, Tensor]


def elbo(
    px: Observation,
    latents: Mapping[str, Latent],
    x: Tensor,
    beta: float | Tensor = 1.0,
    free_bits: FreeBits | None = None,
) -> Terms:
    """Evidence lower bound and the loss made from it.

    Args:
        px: p(x|z), as the model returned it.
        latents: Latents by name, as the model returned them; those without a posterior cost
            nothing.
        x: Data, `[B, *shape]`.
        beta: Weight of all KL terms in the loss.
        free_bits: KL that costs nothing in the loss.

    Returns:
        Loss and reported terms. Under DDP the loss is a mean over the rank's own batch, and so
        are free bits with `average: batch`.
    """
    log_px = per_datum(px.log_prob(x))
    elementwise = {name: v.kl for name, v in latents.items() if v.kl is not None}
    kl = {name: per_datum(v) for name, v in elementwise.items()}
    nothing = torch.zeros_like(log_px)
    total = torch.stack([nothing, *kl.values()]).sum(dim=0)
    if free_bits is None:
        cost = total.mean()
    else:
        cost = sum((floored(v, free_bits) for v in elementwise.values()), nothing.mean())
    return Terms(beta * cost - log_px.mean(), log_px - total, log_px, kl)


def floored(kl: Tensor, free_bits: FreeBits) -> Tensor:
    """A layer's KL with every unit below the floor raised to it, so that it has no gradient.

    Args:
        kl: Elementwise KL, `[B, C, ...]`.
        free_bits: The floor, what it holds for, and whether it meets the batch's mean or each
            sample.

    Returns:
        Batch mean summed over the layer, 0-dim.
    """
    if free_bits.per == "layer":
        units = reduce(kl, "b ... -> b 1", "sum")
    elif free_bits.per == "channel":
        units = reduce(kl, "b c ... -> b c", "sum")
    else:
        units = kl.flatten(1)
    if free_bits.average == "batch":
        units = reduce(units, "b u -> 1 u", "mean")
    return units.clamp(min=free_bits.nats).sum(dim=1).mean()


def iw_elbo(model: HierarchicalVAE, x: Tensor, samples: int, rows: int = 4096) -> Tensor:
    """Importance-weighted bound log 1/K sum_k p(x, z_k) / q(z_k | x) (Burda et al. 2016, eq. 8).

    Uses the joint log-ratio at the draws whatever estimator the posterior has, so it bounds
    log p(x) of the structured posterior and rises to it with K. Under `torch.no_grad()` memory is
    bounded by `rows`; with gradients the graph of all K samples is kept.

    Args:
        model: The model.
        x: Data, `[B, *shape]`.
        samples: Number of importance samples K.
        rows: Data times samples that pass through the model at once; at least B do.

    Returns:
        The bound for each datum, `[B]`, in nats.

    Raises:
        UserError: If K is below 1.

    References:
        Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2016),
        https://arxiv.org/abs/1509.00519
    """
    if samples < 1:
        raise UserError(f"iw_elbo: samples should be at least 1, not {samples}")
    chunk = max(1, rows // x.shape[0])
    total = x.new_full((x.shape[0],), -math.inf)
    for done in range(0, samples, chunk):
        k = min(chunk, samples - done)
        many = repeat(x, "b ... -> (k b) ...", k=k)
        px, latents = model(many)
        weights = rearrange(log_weight(px, latents, many), "(k b) -> k b", k=k)
        total = torch.logaddexp(total, weights.logsumexp(dim=0))
    return total - math.log(samples)


def log_weight(px: Observation, latents: Mapping[str, Latent], x: Tensor) -> Tensor:
    """log p(x|z) + sum_l log p(z_l | .) - log q(z_l | .) at the draws, `[B]`."""
    weight = per_datum(px.log_prob(x))
    for latent in latents.values():
        if latent.q is not None:
            ratio = latent.p.log_prob(latent.z) - latent.q.log_prob(latent.z)
            weight = weight + per_datum(ratio)
    return weight


def per_datum(values: Tensor) -> Tensor:
    """Sum over every axis but the batch, `[B, ...] -> [B]`."""
    return values.flatten(1).sum(dim=1)
