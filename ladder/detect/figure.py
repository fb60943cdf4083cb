"""The figure: how well each score tells each set apart; and a sheet of what the sets look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladder.detect.run import Found
from ladder.ood import OodTable
from ladder.report.canvas import new_figure, plain, png
from ladder.report.sheet import Row, Sheet, sheet_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X"
FEW = 12  # levels that are named one by one
SPREAD = 0.36  # of the place of a level, over which the points of the sets are laid side by side


def figure_png(found: Found) -> bytes:
    """Draw the AUROC of LLR>k against k, with that of the ELBO at 0, beside that of -L>k.

    Args:
        found: The table.

    Returns:
        A PNG.
    """
    sets = found.table.sets
    levels = max(len(row.bound) for row in sets.values())
    figure = new_figure(5.5 if levels == 1 else 11.5, max(4.2, 1.0 + 0.3 * len(sets)))
    panels = figure.subplots(1, min(2, levels), sharey=True, squeeze=False)[0]
    ratios = {name: [row.bound[0], *row.ratio[1:]] for name, row in sets.items()}
    first = first_bound(found.table)
    _draw(panels[0], ratios, (first, "LLR>"))
    panels[0].set_ylabel("AUROC")
    panels[0].set_title(f"Unfamiliar against {found.stamp['data']}", fontsize=12, loc="left")
    if levels > 1:
        _draw(panels[1], {name: row.bound for name, row in sets.items()}, (first, "-L>"))
        panels[1].set_title("The bounds themselves", fontsize=12, loc="left")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return png(figure)


def first_bound(table: OodTable) -> str:
    """What -L>0 is called."""
    return f"-IW-{table.samples}" if table.samples else "-ELBO"


def strange_png(found: Found) -> bytes:
    """Draw a row of examples of every set, as the model gets them; data are grey or colour images.

    Args:
        found: The table.

    Returns:
        A PNG.
    """
    columns = min(len(images) for images in found.examples.values())
    rows = [Row(name, images[:columns]) for name, images in found.examples.items()]
    return sheet_png(Sheet("Familiar and unfamiliar data, as the model gets them", rows))


def _draw(axes: Axes, lines: dict[str, list[float]], scores: tuple[str, str]) -> None:
    from matplotlib import colormaps

    plain(axes, "", "", "")
    axes.axhline(0.5, color="0.4", linestyle="--", linewidth=1.0, zorder=1)
    levels = max(map(len, lines.values()))
    named = levels <= FEW
    for i, (name, values) in enumerate(lines.items()):
        aside = SPREAD * ((i + 0.5) / len(lines) - 0.5) if named else 0.0
        axes.plot(
            [k + aside for k in range(levels)], values, marker=MARKERS[i % len(MARKERS)],
            ms=5 if named else 3, lw=1.2, label=name, color=colormaps["tab10"](i % 10),
        )  # fmt: skip
    axes.set_ylim(-0.03, 1.03)
    if named:
        ticks = [scores[0], *(f"{scores[1]}{k}" for k in range(1, levels))]
        axes.set_xticks(range(levels), ticks)
        axes.set_xlim(-0.4, levels - 0.6)
        axes.grid(visible=False, axis="x")
    else:
        axes.set_xlabel(f"k of {scores[1]}k; at 0 {scores[0]}")
