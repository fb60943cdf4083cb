"""What each level of a model does, as sheets of images.

Compositions of `ladder.sampling`; pictures show the mean of p(x|z). "At its mean" is a latent at
the mean of its prior given the levels above.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.report.sheet import Row, Sheet
from ladder.sampling import (
    decode,
    draw_prior,
    encode,
    interpolate,
    layer_names,
    posterior_means,
    sample,
    swap,
    top_latents,
)

COLUMNS = 10
DRAWS = 3  # rows of new draws below the top alone
TEMPERATURES = (0.4, 0.6, 0.8, 1.0)
COOLED = 3  # draws at each temperature
PUBLISHED = (1.0, 0.9, 0.8, 0.7)  # temperatures at which papers show their samples
NEIGHBOURS = 5  # of each of them
SEARCHED = 128  # test images among which neighbours are looked for, in models that are not deep
WORK = 1600  # images times layers that may be encoded for it
BASES = 3
SPREAD = 0.5  # of the noise around a base point, in standard deviations of the prior
MOST = 5  # numbers of top levels, single levels or groups of levels of a deep model
CANDIDATES = 6  # test images among which the two ends of a walk are chosen


def generation(model: HierarchicalVAE, seed: int) -> Sheet:
    """Draw every level, keep the top ones, and let the rest follow: at the means, and anew.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of all draws.

    Returns:
        A column for each draw; below the top alone, several new draws of the rest.
    """
    names = layer_names(model)
    drawn = draw_prior(model, COLUMNS, seed=seed)
    if len(names) == 1:
        return Sheet(f"Generation, {names[0]} → x", [Row("x", decode(model, drawn).mean)])
    rows = []
    for k in cuts(len(names)):
        top, below = top_latents(drawn, k), _span(names[k:])
        rows.append(Row(f"{below} at mean", decode(model, top, rest="mean").mean))
        for i in range(1, DRAWS + 1 if k == 1 else 2):
            again = decode(model, top, seed=seed + i).mean
            rows.append(Row(f"{below}, draw {i}" if k == 1 else f"{below} anew", again))
    rows.append(Row("as drawn", decode(model, drawn).mean))
    path = " → ".join([*(names if len(names) <= 4 else [names[0], "…", names[-1]]), "x"])
    return Sheet(f"Generation, {path}: a draw per column, its lower levels replaced", rows)


def samples(model: HierarchicalVAE, seed: int) -> Sheet:
    """Draw from the prior at the temperatures that papers show, with the same noise each time.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of all draws.

    Returns:
        A row for each temperature.
    """
    rows = [Row(f"t = {t:g}", sample(model, COLUMNS, t, seed).mean) for t in PUBLISHED]
    return Sheet("Samples, every prior at temperature t; the same noise in a column", rows)


def temperatures(model: HierarchicalVAE, seed: int) -> Sheet:
    """Draw with the same noise again and again, all levels cooled, or some alone.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of all draws.

    Returns:
        A row for each choice of levels, a group of columns for each temperature.
    """
    names = layer_names(model)
    choices = {"all levels": names} if len(names) > 1 else {}
    choices |= {_span(group): group for group in groups(names)}
    rows = []
    for label, levels in choices.items():
        cells = [sample(model, COOLED, dict.fromkeys(levels, t), seed).mean for t in TEMPERATURES]
        rows.append(Row(label, torch.cat(cells)))
    starts = range(0, COOLED * len(TEMPERATURES), COOLED)
    heads = {start + COOLED // 2: f"{t:g}" for start, t in zip(starts, TEMPERATURES, strict=True)}
    title = "Temperature of the levels named, the others at 1; the same noise everywhere"
    return Sheet(title, rows, heads, gaps=[start + COOLED - 1 for start in starts[:-1]])


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
        rows.append(Row(f"point {i + 1}", decode(model, {name: around}, rest="mean").mean))
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
    a, b = test[different(test)]
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
    latents = encode(model, x, seed)
    rows = [Row("original", x), Row(_span(names), decode(model, latents).mean)]
    for k in reversed(cuts(len(names))):
        label = f"{_span(names[:k])} alone" if k == 1 else _span(names[:k])
        label = f"{label} ({k} of {len(names)})" if len(names) > MOST else label
        kept = top_latents(latents, k)
        rows.append(Row(label, decode(model, kept, rest="mean", seed=seed).mean))
    return Sheet("Reconstructions of test images, by levels kept", rows)


def swaps(model: HierarchicalVAE, test: Tensor, seed: int) -> Sheet:
    """Decode the top levels of one test image with the lower levels of another.

    Args:
        model: The model, in evaluation mode.
        test: Test data in [0, 1], `[N, C, H, W]`.
        seed: Seed of the draws from the posteriors.

    Returns:
        A column for each pair: A, fewer and fewer levels of A with the others of B, and B. Rows
        that would repeat the row above are left out.
    """
    names = layer_names(model)
    a = test[:COLUMNS]
    b = a.roll(-1, dims=0)
    of_a, of_b = encode(model, a, seed), encode(model, b, seed)
    rows = [Row("A", a), Row("all levels of A", swap(model, of_a, of_b, len(names)).mean)]
    for k in reversed(cuts(len(names))):
        mixed = swap(model, of_a, of_b, k).mean
        if not torch.allclose(mixed, rows[-1].images, atol=1e-5):
            rows.append(Row(f"{_span(names[:k])} of A, {_span(names[k:])} of B", mixed))
    pure = swap(model, of_a, of_b, 0).mean
    if not torch.allclose(pure, rows[-1].images, atol=1e-5):
        rows.append(Row("all levels of B", pure))
    return Sheet("Coarse of A, fine of B: two test images per column", [*rows, Row("B", b)])


def neighbours(model: HierarchicalVAE, test: Tensor, seed: int) -> Sheet:
    """Look for the test images whose posterior means are nearest, level by level.

    Args:
        model: The model, in evaluation mode.
        test: Test data in [0, 1], `[N, C, H, W]`.
        seed: Seed of the draws that posteriors condition on.

    Returns:
        A group of columns for each image asked about, a row for the pixels and each level.
    """
    test = test[: max(4 * NEIGHBOURS, min(SEARCHED, WORK // len(layer_names(model))))]
    means = posterior_means(encode(model, test, seed))
    asked = different(test)
    rows = []
    for label, space in {"pixels": test, **{name: means[name] for name in shown(means)}}.items():
        flat = space.flatten(1)
        distances = torch.cdist(flat[asked], flat)
        distances[list(range(len(asked))), asked] = -1.0  # the image itself comes first
        nearest = distances.argsort(dim=1, stable=True)[:, : NEIGHBOURS + 1]
        rows.append(Row(label, test[nearest.flatten()]))
    width = nearest.shape[1]
    heads = {i * width: "image" for i in range(len(asked))}
    title = "What each level finds alike: the nearest test images by posterior mean"
    return Sheet(title, rows, heads, gaps=[0, width - 1, width])


def cuts(layers: int) -> list[int]:
    """At most `MOST` evenly spread numbers of top levels, from 1 to `layers` - 1."""
    if layers == 1:
        return []
    return sorted({round(k) for k in np.linspace(1, layers - 1, min(MOST, layers - 1))})


def shown(names: Collection[str]) -> list[str]:
    """At most `MOST` + 1 evenly spread levels, the first and the last among them."""
    every = list(names)
    return [every[round(i)] for i in np.linspace(0, len(every) - 1, min(MOST + 1, len(every)))]


def groups(names: list[str]) -> list[list[str]]:
    """The levels one by one, or at most `MOST` groups of neighbours of a deep model."""
    parts = np.array_split(np.arange(len(names)), min(MOST, len(names)))
    return [[names[i] for i in part] for part in parts]


def different(test: Tensor) -> list[int]:
    """Index of the first datum, and of that of the next few which differs most from it."""
    distances = (test[:CANDIDATES] - test[0]).square().flatten(1).sum(1)
    return [0, int(distances.argmax())]


def _top_prior(model: HierarchicalVAE, n: int, seed: int) -> Latent:
    """The top latent of `n` draws from the prior."""
    return draw_prior(model, n, seed=seed)[layer_names(model)[0]]


def _span(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
