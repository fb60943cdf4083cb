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
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from ladder.data import Data, take
from ladder.diagnostics import as_evaluated
from ladder.errors import UserError, WorkFailed
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.objectives import per_datum
from ladder.sampling import layer_names

Tell = Callable[[str], None]


class LevelScores(NamedTuple):
    """Bounds and their differences for each datum, in nats.

    Attributes:
        bound: L>k at index k, `[L, B]`; index 0 is the ELBO. Unfamiliar data have low ones.
        ratio: LLR>k = L>0 - L>k, `[L, B]`; index 0 is 0. Unfamiliar data have high ones.
    """

    bound: Tensor
    ratio: Tensor


class Detection(NamedTuple):
    """How well each score tells one set from the familiar data.

    Attributes:
        bound: AUROC of -L>k at index k; index 0 is that of -ELBO.
        ratio: AUROC of LLR>k at index k; index 0 is 0.5, as LLR>0 is 0.
        mean: Mean of L>0 in nats.
        n: Number of data.
    """

    bound: list[float]
    ratio: list[float]
    mean: float
    n: int


class OodTable(NamedTuple):
    """Familiar data against unfamiliar sets.

    Attributes:
        sets: What each unfamiliar set came to, by name.
        mean: Mean of L>0 of the familiar data, in nats.
        n: Number of familiar data.
        samples: S of the bounds; 0 for one draw with the model's own estimate of the KL.
        seed: Seed of the noise, the same for every set.
    """

    sets: dict[str, Detection]
    mean: float
    n: int
    samples: int
    seed: int | None


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


def ood_table(
    model: HierarchicalVAE,
    familiar: Data,
    unfamiliar: Mapping[str, Data],
    samples: int = 0,
    n: int | None = None,
    seed: int | None = 0,
    batch_size: int = 128,
    tell: Tell | None = None,
) -> OodTable:
    """Score familiar data and unfamiliar sets, and say how well each score tells them apart.

    Args:
        model: The model.
        familiar: Data like the training data, best such that were not trained on, `[N, *shape]`.
        unfamiliar: Other data of the same shape, by name, for instance `strange_sets(familiar)`.
        samples: As in `level_bounds`.
        n: Only the first n of each set; `None` takes all.
        seed: Seed of the noise of each set; `None` goes on with torch's generator.
        batch_size: Data at once.
        tell: Called with the name of each unfamiliar set when it is done.

    Returns:
        The AUROC of every score for every set, of `-ELBO`, `-L>k` and `LLR>k`: how often an
        unfamiliar datum scores higher than a familiar one.

    Raises:
        UserError: If a set is empty or of another shape, or a number is out of range.
        WorkFailed: If a score is not a number.
    """
    if n is not None and n < 1:
        raise UserError(f"ood_table: n should be at least 1, not {n}")
    right = list(familiar.shape[1:] if model.shape is None else model.shape)
    for name, images in {"familiar": familiar, **unfamiliar}.items():
        if list(images.shape[1:]) != right:
            found = list(images.shape[1:])
            raise UserError(f"ood_table: '{name}' has data of shape {found}; give {right}")

    def score(name: str, images: Data) -> LevelScores:
        scores = level_scores(model, images[:n], batch_size, samples, seed)
        if scores.ratio.isnan().any():
            raise WorkFailed(f"ood_table: the bounds of the {name} data are not finite")
        return scores

    known = score("familiar", familiar)
    sets = {}
    for name, images in unfamiliar.items():
        strange = score(f"'{name}'", images)
        bounds = [auroc(-a, -b) for a, b in zip(known.bound, strange.bound, strict=True)]
        ratios = [auroc(a, b) for a, b in zip(known.ratio, strange.ratio, strict=True)]
        mean = float(strange.bound[0].double().mean())
        sets[name] = Detection(bounds, ratios, mean, strange.bound.shape[1])
        if tell is not None:
            tell(name)
    mean = float(known.bound[0].double().mean())
    return OodTable(sets, mean, known.bound.shape[1], samples, seed)


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
