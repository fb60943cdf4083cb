"""The figure: the bound of every variant, and what each layer of it holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ladder.ablate.table import Row, Spread, Table
from ladder.report.canvas import new_figure, plain, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 10  # variants that have colours of their own; more are shades of one map
MARKERS = {"elbo": "o", "iw": "D"}


def figure_png(table: Table) -> bytes:
    """Draw the bounds above, KL and active units per layer below.

    Args:
        table: The table; at least one cell is done.

    Returns:
        A PNG.
    """
    rows = [row for row in table.rows if row.numbers]
    colours = _colours(len(rows))
    width = max(9.0, 2.0 + 0.16 * len(rows) * len(table.layers))
    heights = [0.9 + 0.42 * len(rows), 2.7, 2.7]
    figure = new_figure(min(width, 24.0), sum(heights) + 1.5)
    bound, kl, active = figure.subplots(
        3, 1, gridspec_kw={"height_ratios": heights, "hspace": 0.45}
    )
    _bounds(bound, table, rows, colours)
    _bars(kl, table, rows, colours, "kl")
    plain_bars(kl, "KL per layer", "nats per datum", table.layers)
    _bars(active, table, rows, colours, "active_units")
    plain_bars(active, "Active units per layer (outline: all units)", "units", table.layers)
    # A label of one value alone needs its key beside it.
    key = next(iter(table.keys.values())) if len(table.keys) == 1 else ""
    bound.set_ylabel(key)
    kl.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title=key)
    return png(figure)


def plain_bars(axes: Axes, title: str, y: str, layers: list[str]) -> None:
    """Label axes that have a group of bars for each layer."""
    plain(axes, title, "", y)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(range(len(layers)), layers)
    axes.set_xlim(-0.6, len(layers) - 0.4)


def _bounds(axes: Axes, table: Table, rows: list[Row], colours: list[Any]) -> None:
    samples = table.ablation.samples
    names = ["elbo", *([f"iw{samples}"] if samples else [])]
    for name, offset in zip(names, (0.0,) if len(names) == 1 else (0.16, -0.16), strict=True):
        marker = MARKERS["elbo" if name == "elbo" else "iw"]
        for i, row in enumerate(rows):
            value, y = row.numbers[name], i + offset
            axes.errorbar(
                value.mean, y, xerr=value.std, fmt=marker, color=colours[i], capsize=3, ms=6
            )
            for x in _each(table, row, name):
                axes.plot(x, y, marker, color=colours[i], ms=3, alpha=0.4)
            axes.annotate(
                _text(value), (value.mean + (value.std or 0.0), y), xytext=(8, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
        label = "ELBO" if name == "elbo" else f"IW-{samples}"
        axes.plot([], [], marker, color="0.4", label=label)
    spread = " ± standard deviation over seeds" if any(len(r.seeds) > 1 for r in rows) else ""
    plain(axes, f"Test bound{spread}", "nats per datum", "")
    axes.set_yticks(range(len(rows)), [table.label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.16)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


def _bars(axes: Axes, table: Table, rows: list[Row], colours: list[Any], kind: str) -> None:
    width = 0.84 / len(rows)
    for i, row in enumerate(rows):
        shift = (i - (len(rows) - 1) / 2) * width
        for j, layer in enumerate(table.layers):
            value = row.numbers.get(f"{kind}_{layer}")
            if value is None:  # the variant has no such layer
                continue
            axes.bar(
                j + shift, value.mean, 0.92 * width, yerr=value.std, color=colours[i], capsize=2,
                error_kw={"lw": 1}, label=table.label(row) if j == 0 else None,
            )  # fmt: skip
            if kind == "active_units":
                units = row.numbers[f"units_{layer}"].mean
                axes.bar(j + shift, units, 0.92 * width, fill=False, ec=colours[i], lw=0.8)
    if all(s.mean >= 0.0 for row in rows for n, s in row.numbers.items() if n.startswith(kind)):
        axes.set_ylim(bottom=0.0)  # the ends of spreads below it say nothing


def _each(table: Table, row: Row, name: str) -> list[float]:
    """The number in every cell of a row, if there are several."""
    cells = [c for c in table.cells if _variant(c.values, row) and c.name in table.results]
    values = [table.results[cell.name].numbers[name] for cell in cells]
    return values if len(values) > 1 else []


def _variant(values: dict[str, str], row: Row) -> bool:
    return all(values[key] == label for key, label in row.values.items())


def _colours(n: int) -> list[Any]:
    from matplotlib import colormaps

    if n <= FEW:
        return [colormaps["tab10"](i) for i in range(n)]
    return [colormaps["viridis"](0.92 * i / (n - 1)) for i in range(n)]


def _text(value: Spread) -> str:
    if value.std is None or not math.isfinite(value.std):
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} ± {value.std:.2f}"
