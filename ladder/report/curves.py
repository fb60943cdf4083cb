"""Curves of a run: objective and reconstruction, KL per layer. All in nats per datum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ladder.report.canvas import new_figure, plain, png
from ladder.report.history import (
    Line,
    Record,
    by_epoch,
    held_out_line,
    last_evaluation,
    logged_layers,
    training_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKED = 40  # points of a line that are marked one by one
LEGEND_ROWS = 16
BEGINNING = 0.1  # share of a run whose values may leave the picture
TALLER = 2.0  # where they would make it so many times as tall


def has_curves(records: Sequence[Record]) -> bool:
    """Whether there is a training metric to draw."""
    return any("train/loss" in record for record in records)


def objective_png(records: Sequence[Record]) -> bytes:
    """Draw the training objective beside the reconstruction term, with the held-out curves.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        A PNG.
    """
    figure = new_figure(11.5, 4.2)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.24})
    x = "epoch" if by_epoch(records) else "step"
    split = (last_evaluation(records) or {}).get("val/split", "held out")
    plain(left, "Objective", x, "nats per datum")
    for label, line in objective_lines(records).items():
        _draw(left, line, label)
    _draw(left, held_out_line(records, "val/elbo", -1.0), f"-ELBO, {split}", "--")
    plain(right, "Reconstruction, -log p(x|z)", x, "nats per datum")
    _draw(right, training_line(records, "train/nll"), "train")
    _draw(right, held_out_line(records, "val/nll"), str(split), "--")
    for axes in (left, right):
        _cut_the_beginning(axes)
        axes.legend(frameon=False)
    return png(figure)


def objective_lines(records: Sequence[Record]) -> dict[str, Line]:
    """What is optimised, and the training -ELBO wherever annealing or free bits tell it apart."""
    loss = training_line(records, "train/loss")
    elbo = training_line(records, "train/elbo")
    bound = Line(elbo.x, [-value for value in elbo.y])
    if loss.x == bound.x and all(map(_close, loss.y, bound.y)):
        return {"objective = -ELBO, train": loss}
    return {"objective, train": loss, "-ELBO, train": bound}


def kl_png(records: Sequence[Record]) -> bytes:
    """Draw the KL of every layer in training.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        A PNG.
    """
    from matplotlib import colormaps

    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    plain(axes, "KL per layer, train", "epoch" if by_epoch(records) else "step", "nats per datum")
    names = logged_layers(records)
    for i, name in enumerate(names):
        colour = colormaps["viridis"](0.88 * i / max(1, len(names) - 1))
        _draw(
            axes, training_line(records, name), f"z{int(name.removeprefix('kl/z'))}", colour=colour
        )
    _cut_the_beginning(axes)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.legend(
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=max(1, math.ceil(len(names) / LEGEND_ROWS)),
    )
    return png(figure)


def _draw(
    axes: Axes,
    line: Line,
    label: str,
    style: str = "-",
    colour: tuple[float, float, float, float] | None = None,
) -> None:
    marker = "o" if len(line.x) <= MOST_MARKED else ""
    if line.x:
        axes.plot(line.x, line.y, style, marker=marker, markersize=3, label=label, color=colour)


def _cut_the_beginning(axes: Axes) -> None:
    """Let large values of the first steps leave the picture, so that the rest can be read."""
    drawn = [np.asarray(line.get_xydata(), dtype=float) for line in axes.get_lines()]
    points = [(x, y) for xy in drawn for x, y in xy.tolist() if math.isfinite(y)]
    last = max((x for x, _ in points), default=0.0)
    values = [y for _, y in points]
    later = [y for x, y in points if x >= BEGINNING * last]
    if not later:
        return
    low, high = min(values), max(later)
    if max(values) - low > TALLER * (high - low) > 0.0:
        margin = 0.08 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5)
