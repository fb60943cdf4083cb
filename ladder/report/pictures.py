"""What each level of a model does, as sheets of images.

Compositions of `ladder.sampling`; pictures show the mean of p(x|z). "At its mean" is a latent at
the mean of its prior given the levels above.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.report.sheet import Row, Sheet
from ladder.sampling import decode, draw_prior, interpolate, layer_names, reconstruct

COLUMNS = 10
RESAMPLED = 3  # rows of new draws below the same top
BASES = 3
SPREAD = 0.5  # of the noise around a base point, in standard deviations of the prior
MOST_CUTS = 4  # partial reconstructions of a deep model
CANDIDATES = 6  # test images among which the two ends of a walk are chosen


def generation(model: HierarchicalVAE, seed: int) -> Sheet:
    """Draw the top from its prior, then everything below: at the means, and anew for each row.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of all draws.

    Returns:
        A column for each draw of the top.
    """
    names = layer_names(model)
    top = {names[0]: _top_prior(model, COLUMNS, seed).z}
    if len(names) == 1:
        return Sheet(f"Generation, {names[0]} → x", [Row("x", decode(model, top).mean)])
    below = _span(names[1:])
    rows = [Row(f"{below} at mean", decode(model, top, temperature=0.0).mean)]
    for i in range(1, RESAMPLED + 1):
        rows.append(Row(f"{below}, draw {i}", decode(model, top, seed=seed + i).mean))
    path = " → ".join([*(names if len(names) <= 4 else [names[0], "…", names[-1]]), "x"])
    return Sheet(f"Generation, {path}: a draw of {names[0]} per column", rows)


def vary_top(model: HierarchicalVAE, seed: int) -> Sheet:
    """Move the top a little around points drawn from its prior, everything below at its mean.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of all draws.

    Returns:
        A row for each point; the point itself comes first.
    """
    name = layer_names(model)[0]
    bases = _top_prior(model, BASES, seed)
    noise = _top_prior(model, BASES * (COLUMNS - 1), seed + 1)
    rows = []
    for i, part in enumerate((noise.z - noise.p.mean).split(COLUMNS - 1)):
        around = torch.cat([bases.z[i : i + 1], bases.z[i] + SPREAD * part])
        rows.append(Row(f"point {i + 1}", decode(model, {name: around}, temperature=0.0).mean))
    title = f"Varying {name}: a point, then the point + {SPREAD:g} · noise"
    return Sheet(title, rows, gaps=[0])


def interpolation(model: HierarchicalVAE, test: Tensor, seed: int) -> Sheet:
    """Walk between two test images in the top levels, in z1, and in all levels.

    Args:
        model: The model, in evaluation mode.
        test: Test data in [0, 1], `[N, C, H, W]`.
        seed: Seed of the draws that posteriors condition on.

    Returns:
        A row for each choice of levels, between the images themselves.
    """
    names = layer_names(model)
    a, b = different(test)
    choices = {_span(names[:k]): names[:k] for k in cuts(len(names))}
    choices[names[-1]] = names[-1:]
    walks = {k: interpolate(model, a, b, v, COLUMNS, seed).mean for k, v in choices.items()}
    everything = interpolate(model, a, b, names, COLUMNS, seed).mean
    # Where x depends on z1 alone, a walk in all levels is the walk in z1.
    if not torch.allclose(everything, walks[names[-1]], atol=1e-5):
        walks["all levels"] = everything
    rows = [Row(k, torch.cat([a[None], walk, b[None]])) for k, walk in walks.items()]
    heads = {0: "original", COLUMNS + 1: "original"}
    title = "Interpolation between two test images, by levels"
    return Sheet(title, rows, heads, gaps=[0, COLUMNS])


def reconstructions(model: HierarchicalVAE, test: Tensor, seed: int) -> Sheet:
    """Encode test images, keep all levels or only the top ones, and decode.

    Args:
        model: The model, in evaluation mode.
        test: Test data in [0, 1], `[N, C, H, W]`.
        seed: Seed of the draws from the posteriors.

    Returns:
        The images, then a row for each number of levels kept; the others are at their means.
    """
    names = layer_names(model)
    x = test[:COLUMNS]
    rows = [Row("original", x), Row(_span(names), reconstruct(model, x, seed=seed).mean)]
    for k in reversed(cuts(len(names))):
        label = f"{_span(names[:k])} alone" if k == 1 else _span(names[:k])
        rows.append(Row(label, reconstruct(model, x, top=k, seed=seed).mean))
    return Sheet("Reconstructions of test images, by levels kept", rows)


def cuts(layers: int) -> list[int]:
    """At most `MOST_CUTS` evenly spread numbers of top levels, from 1 to `layers` - 1."""
    if layers == 1:
        return []
    return sorted({round(k) for k in np.linspace(1, layers - 1, min(MOST_CUTS, layers - 1))})


def different(test: Tensor) -> tuple[Tensor, Tensor]:
    """The first datum, and that of the next few which differs most from it, each `[*shape]`."""
    distances = (test[:CANDIDATES] - test[0]).square().flatten(1).sum(1)
    return test[0], test[int(distances.argmax())]


def _top_prior(model: HierarchicalVAE, n: int, seed: int) -> Latent:
    """The top latent of `n` draws from the prior."""
    return draw_prior(model, n, seed=seed)[layer_names(model)[0]]


def _span(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
