"""The bound on held-out data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ladder.data import Data, take
from ladder.diagnostics import (
    Moments,
    Units,
    as_evaluated,
    kl_estimator,
    merged,
    observed,
    units,
)
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, iw_elbo
from ladder.train.device import products

SEED = 20_160_901  # of evaluation's noise, so that two evaluations differ only by their models


class Evaluation(NamedTuple):
    """Means over a split, in nats per datum.

    Attributes:
        elbo: Reported ELBO with the estimator that the model's posteriors have.
        nll: -log p(x|z).
        kl: KL of each layer by name.
        iw: Importance-weighted bound on log p(x), or `None`.
        samples: K of `iw`; 0 without it.
        n: Number of data.
        bpd: Bits per dimension of `iw` if there is one, else of `elbo`. Of a density on [0, 1],
            as with a Gaussian likelihood, add 8 to compare with a code for 8-bit values.
        units: KL and activity of the units of each layer by name, from the same draws.
        estimator: How the KL was estimated: `closed form`, `sampled`, or both.
    """

    elbo: float
    nll: float
    kl: dict[str, float]
    iw: float | None
    samples: int
    n: int
    bpd: float
    units: dict[str, Units]
    estimator: str


class Part(NamedTuple):
    """What was measured on some of the data; parts add up to an `Evaluation`.

    Attributes:
        n: Number of data.
        sums: Sums over them by name, float64 on the CPU, in nats.
        moments: Of the units of each layer by name, on the CPU.
        estimator: How the KL was estimated; empty if there are no data.
    """

    n: int
    sums: dict[str, Tensor]
    moments: dict[str, Moments]
    estimator: str


def evaluate(
    model: HierarchicalVAE,
    images: Data,
    batch_size: int = 128,
    samples: int = 0,
    seed: int = SEED,
) -> Evaluation:
    """Measure the bound, without touching torch's generators or the model's mode.

    Args:
        model: The model.
        images: Prepared data, `[N, *shape]`, uint8 or in [0, 1].
        batch_size: Data at once.
        samples: Importance samples K; 0 measures only the ELBO.
        seed: Seed of the noise.

    Returns:
        The means.
    """
    rows = torch.arange(len(images))
    part = evaluate_part(model, images, rows, batch_size, samples, seed)
    return added([part], samples, images.shape[1:].numel())


@torch.inference_mode()
def evaluate_part(
    model: HierarchicalVAE,
    images: Data,
    rows: Tensor,
    batch_size: int = 128,
    samples: int = 0,
    seed: int = SEED,
) -> Part:
    """Measure some of the data, as one of several processes does; arguments as of `evaluate`.

    In float32, whatever the model was trained in.

    Args:
        model: The model.
        images: All data.
        rows: Those that are measured, int64 `[n]`, on the CPU.
        batch_size: Data at once.
        samples: Importance samples K.
        seed: Seed of the noise.

    Returns:
        What `added` makes an evaluation of.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    moments: dict[str, Moments] = {}
    estimator = ""
    with as_evaluated(model, seed), products("float32", device):
        for index in rows.split(batch_size) if len(rows) else []:
            x = take(images, index, device)
            values, latents = _measure(model, x, samples)
            moments = merged(moments, observed(latents))
            estimator = kl_estimator(latents)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value.double().sum()
    sums, moments = tree_map_only(Tensor, Tensor.cpu, (sums, moments))
    return Part(len(rows), sums, moments, estimator)


def added(parts: Sequence[Part], samples: int, size: int) -> Evaluation:
    """Add up what was measured.

    Args:
        parts: The parts; one of them has data.
        samples: Importance samples K of each.
        size: Dimensions of a datum.

    Returns:
        The means.
    """
    parts = [part for part in parts if part.n]
    n = sum(part.n for part in parts)
    sums = {name: [part.sums[name] for part in parts] for name in parts[0].sums}
    means = {name: (torch.stack(values).sum() / n).item() for name, values in sums.items()}
    moments = reduce(merged, (part.moments for part in parts))
    bound = means.get("iw", means["elbo"])
    return Evaluation(
        elbo=means["elbo"],
        nll=means["nll"],
        kl={name: v for name, v in means.items() if name.startswith("z")},
        iw=means.get("iw"),
        samples=samples,
        n=n,
        bpd=-bound / (math.log(2.0) * size),
        units={name: units(m) for name, m in moments.items()},
        estimator=parts[0].estimator,
    )


def _measure(
    model: HierarchicalVAE, x: Tensor, samples: int
) -> tuple[dict[str, Tensor], dict[str, Latent]]:
    """Quantities by name, `[B]`, and the latents of one pass."""
    px, latents = model(x)
    terms = elbo(px, latents, x)
    values = {"elbo": terms.elbo, "nll": -terms.log_px, **terms.kl}
    if samples:
        values["iw"] = iw_elbo(model, x, samples)
    return values, latents
