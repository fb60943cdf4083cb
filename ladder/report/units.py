"""The units of every layer over a run: a map of their KL, and how many are active."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ladder.diagnostics import ACTIVE, SPEAKING
from ladder.report.canvas import new_figure, plain, png
from ladder.report.history import Record, by_epoch, held_out_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

MOST_LAYERS = 24  # maps in one figure; a deeper model shows layers spread over its depth
MOST_COLUMNS = 240  # evaluations in one map
COUNTS = {"active_units": "active", "speaking_units": "speaking"}
LEAST = 0.1  # nats that the colours reach at least


def has_units(units: Sequence[Record]) -> bool:
    """Whether units.jsonl holds an evaluation with the KL of a unit."""
    return any(record.get("kl") for record in units)


def units_png(units: Sequence[Record]) -> bytes:
    """Draw the KL of every unit over the evaluations, a map for each layer.

    Units are sorted by their KL at the end, the largest at the top; a column of colour ends at
    its evaluation.

    Args:
        units: Lines of units.jsonl.

    Returns:
        A PNG.
    """
    kept = thinned([record for record in units if record.get("kl")])
    names = shown_layers(kept[-1])
    across = min(len(names), 3 if len(names) <= 6 else 4)
    down = math.ceil(len(names) / across)
    figure = new_figure(1.0 + 3.6 * across, 0.8 + 2.5 * down)
    cells = figure.subplots(
        down, across, squeeze=False, gridspec_kw={"wspace": 0.28, "hspace": 0.5}
    ).ravel()
    maps = {name: sorted_map(kept, name) for name in names}
    top = max(LEAST, *(float(m.max()) for m in maps.values()))
    for axes, name in zip(cells, names, strict=False):
        mesh = _draw_map(axes, maps[name], edges(kept), top)
        axes.set_title(f"z{int(name[1:])}, {len(maps[name])} units", fontsize=11, loc="left")
    for axes in cells[len(names) :]:
        axes.set_visible(False)
    for axes in cells[max(0, len(names) - across) : len(names)]:
        axes.set_xlabel("epoch" if by_epoch(kept) else "step")
    bar = figure.colorbar(mesh, ax=list(cells), extend="min", pad=0.02, fraction=0.03)
    bar.set_label("KL in nats, held out")
    return png(figure)


def active_png(records: Sequence[Record]) -> bytes:
    """Draw how many units of each layer are active, and how many speak, over the evaluations.

    Args:
        records: Lines of metrics.jsonl.

    Returns:
        A PNG.
    """
    from matplotlib import colormaps

    figure = new_figure(11.5, 4.2)
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    x = "epoch" if by_epoch(records) else "step"
    names = counted_layers(records)
    plain(panels[0], f"Variance of the posterior mean over {ACTIVE:g}", x, "units")
    plain(panels[1], f"KL over {SPEAKING:g} nats", x, "")
    for axes, count in zip(panels, COUNTS, strict=True):
        for i, name in enumerate(names):
            line = held_out_line(records, f"{count}/{name}")
            colour = colormaps["viridis"](0.88 * i / max(1, len(names) - 1))
            marker = "o" if len(line.x) <= 40 else ""
            axes.plot(line.x, line.y, marker=marker, ms=3, label=_plain(name), color=colour)
        axes.locator_params(axis="y", integer=True)
    panels[0].set_ylim(bottom=0.0)  # after both panels are drawn: they share the axis
    panels[1].legend(
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        ncols=max(1, math.ceil(len(names) / 16)),
    )
    return png(figure)


def counted_layers(records: Sequence[Record]) -> list[str]:
    """Layers whose units were counted, as `z01`, the data's side first."""
    prefix = "active_units/"
    keys = {key for record in records for key in record if key.startswith(prefix)}
    return sorted((key.removeprefix(prefix) for key in keys), key=_number)


def shown_layers(record: Record) -> list[str]:
    """Layers of a line of units.jsonl, the data's side first; of many, some spread over all."""
    names = sorted(record["kl"], key=_number)
    if len(names) <= MOST_LAYERS:
        return names
    chosen = np.linspace(0, len(names) - 1, MOST_LAYERS).round().astype(int)
    return [names[i] for i in chosen]


def thinned(units: Sequence[Record]) -> list[Record]:
    """At most so many evaluations as a map has columns, the last one among them."""
    stride = math.ceil(len(units) / MOST_COLUMNS)
    return list(units[::-1][::stride][::-1])


def sorted_map(units: Sequence[Record], name: str) -> np.ndarray:
    """KL by unit and evaluation, `[U, evaluations]`, the unit with the largest last KL first."""
    values = np.array([record["kl"][name] for record in units], dtype=np.float64).T
    order = np.argsort(-values[:, -1], kind="stable")
    ordered: np.ndarray = values[order]
    return ordered


def edges(units: Sequence[Record]) -> list[float]:
    """Where the columns of a map begin and end: each ends at its evaluation, the first at 0."""
    axis = "epoch" if by_epoch(units) else "step"
    return [0.0, *(float(record[axis]) for record in units)]


def _draw_map(axes: Axes, values: np.ndarray, x: Sequence[float], top: float) -> QuadMesh:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    colours = colormaps["viridis"].with_extremes(under="#e8e8e8")
    y = np.arange(len(values) + 1)
    # A sampled estimate may be below 0, where a logarithm is not: that is under the scale too.
    shown = np.maximum(values, SPEAKING * 1e-3)
    mesh = axes.pcolormesh(x, y, shown, cmap=colours, norm=LogNorm(SPEAKING, top), rasterized=True)
    axes.invert_yaxis()
    axes.locator_params(axis="both", integer=True, nbins=5)
    axes.spines[:].set_visible(False)
    return mesh


def _number(name: str) -> int:
    return int(name.removeprefix("z"))


def _plain(name: str) -> str:
    return f"z{_number(name)}"
