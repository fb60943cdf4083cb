"""Is a datum like the training data? Bounds that trust the encoder only above a level.

For k = 0, ..., L - 1 (Havtorn et al. 2021): latents above level k come from the posterior, those
up to k from their priors given what is above,

    L>k = E[log p(x|z) + sum_{l>k} log p(z_l | z_>l) - log q(z_l | .)],   LLR>k = L>0 - L>k.

L>0 is the ELBO, and every L>k is a bound on log p(x). Low levels describe local texture that
strange data share with familiar ones; LLR>k is large where x needs those levels because the
levels above do not understand it.

Where inference goes up, q(z_l | z_<l, x) conditions on the draws below; they are drawn, used by
the encoder and then replaced by the prior's, so that L>k remains a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from ladder.data import Data, take
from ladder.diagnostics import as_evaluated
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.objectives import per_datum
from ladder.sampling import layer_names


class LevelScores(NamedTuple):
    """Bounds and their differences for each datum, in nats.

    Attributes:
        bound: L>k at index k, `[L, B]`; index 0 is the ELBO. Unfamiliar data have low ones.
        ratio: LLR>k = L>0 - L>k, `[L, B]`; index 0 is 0. Unfamiliar data have high ones.
    """

    bound: Tensor
    ratio: Tensor


@torch.no_grad()
def level_bounds(
    model: HierarchicalVAE, x: Tensor, samples: int = 0, rows: int = 4096
) -> LevelScores:
    """Compute L>k and LLR>k of a batch for every k: one encoding, then one decoding for each k.

    Args:
        model: The model.
        x: Data, `[B, *shape]`.
        samples: 0 draws once and uses the model's own estimate of the KL, so that L>0 is the
            reported ELBO; S of 1 or more takes the importance-weighted bound of S draws, which
            rises to log p(x) for every k.
        rows: Data times samples that pass through the model at once; at least B do.

    Returns:
        The scores, `[L, B]`.

    Raises:
        UserError: If `samples` is negative.

    References:
        Hierarchical VAEs Know What They Don't Know (Havtorn, Frellsen, Hauberg, Maaløe, 2021),
        https://arxiv.org/abs/2102.08248
    """
    if samples < 0:
        raise UserError(f"level_bounds: samples should be at least 0, not {samples}")
    if samples == 0:
        return _scores(_weights(model, x, sampled=False))
    chunk = max(1, rows // x.shape[0])
    total = torch.tensor(-math.inf)
    for done in range(0, samples, chunk):
        k = min(chunk, samples - done)
        weights = _weights(model, repeat(x, "b ... -> (k b) ...", k=k), sampled=True)
        total = torch.logaddexp(
            total.to(weights), rearrange(weights, "l (k b) -> k l b", k=k).logsumexp(dim=0)
        )
    return _scores(total - math.log(samples))


def level_scores(
    model: HierarchicalVAE,
    images: Data,
    batch_size: int = 128,
    samples: int = 0,
    seed: int | None = 0,
) -> LevelScores:
    """`level_bounds` of a set of data, in evaluation mode and with seeded noise.

    Args:
        model: The model.
        images: A tensor or a split of a data set, `[N, *shape]`, uint8 or in [0, 1].
        batch_size: Data at once.
        samples: As in `level_bounds`.
        seed: Seed of the noise; `None` goes on with torch's generator.

    Returns:
        The scores, `[L, N]`, on the CPU.

    Raises:
        UserError: If there are no data, or `samples` is negative.
    """
    if len(images) == 0:
        raise UserError("level_scores: needs at least one datum")
    device = next(model.parameters()).device
    with as_evaluated(model, seed):
        parts = [
            level_bounds(model, take(images, index, device), samples)
            for index in torch.arange(len(images)).split(batch_size)
        ]
    bounds, ratios = zip(*parts, strict=True)
    return LevelScores(torch.cat(bounds, dim=1).cpu(), torch.cat(ratios, dim=1).cpu())


def auroc(familiar: Tensor, unfamiliar: Tensor) -> float:
    """Probability that an unfamiliar datum scores higher than a familiar one, ties counting half.

    The area under the ROC curve of "a score above a threshold is unfamiliar", exactly.

    Args:
        familiar: Scores of data like the training data, `[N]`.
        unfamiliar: Scores of the others, `[M]`; for a score that is low there, such as a bound,
            give both with a minus.

    Returns:
        0.5 for scores that tell nothing, 1 for those that tell all.

    Raises:
        UserError: If there are no scores, or one is not a number.
    """
    a, b = familiar.flatten().double(), unfamiliar.flatten().double()
    if len(a) == 0 or len(b) == 0 or a.isnan().any() or b.isnan().any():
        raise UserError("auroc: both sets need at least one score, and none may be nan")
    a = a.sort().values
    # Counts of familiar scores below each unfamiliar one, and of those not above it.
    below = torch.searchsorted(a, b, right=False).sum()
    not_above = torch.searchsorted(a, b, right=True).sum()
    return float(below + not_above) / (2 * len(a) * len(b))


def _scores(bound: Tensor) -> LevelScores:
    return LevelScores(bound, bound[0] - bound)


def _weights(model: HierarchicalVAE, x: Tensor, sampled: bool) -> Tensor:
    """log p(x|z) - sum_{l>k} log-ratio for every k, `[L, B]`; index k."""
    px, latents = model(x)
    names = layer_names(model)
    weights = [per_datum(px.log_prob(x)) - sum(_costs(latents, sampled))]
    for k in range(1, len(names)):
        above = {name: latents[name] for name in names[: len(names) - k]}
        decoded = model.decode(x.shape[0], {name: v.z for name, v in above.items()})[0]
        weights.append(per_datum(decoded.log_prob(x)) - sum(_costs(above, sampled)))
    return torch.stack(weights)


def _costs(latents: Mapping[str, Latent], sampled: bool) -> list[Tensor]:
    """What each layer costs, `[B]`: its KL estimate, or log q - log p at the draw."""
    costs = []
    for latent in latents.values():
        assert latent.q is not None
        assert latent.kl is not None
        ratio = latent.q.log_prob(latent.z) - latent.p.log_prob(latent.z) if sampled else latent.kl
        costs.append(per_datum(ratio))
    return costs
