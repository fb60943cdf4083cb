"""The table as Markdown, CSV for a spreadsheet and JSON with everything; and two pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.detect.figure import figure_png, first_bound, strange_png
from ladder.detect.run import Found
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.ood import Detection
from ladder.report.sheet import drawable

MARKDOWN, CSV, JSON, FIGURE, STRANGE = (
    "table.md",
    "table.csv",
    "table.json",
    "figure.png",
    "strange.png",
)
MOST = 12  # levels that a table for a reader shows


def write_found(found: Found, out: Path) -> list[Path]:
    """Write table.md, table.csv, table.json, figure.png and, of images, strange.png.

    Args:
        found: The table.
        out: A folder; made if it is not there.

    Returns:
        The files.

    Raises:
        UserError: If they cannot be written.
    """
    contents: dict[str, str | bytes] = {
        MARKDOWN: markdown(found),
        CSV: spreadsheet(found),
        JSON: json.dumps(record(found), indent=2) + "\n",
        FIGURE: figure_png(found),
    }
    if drawable(next(iter(found.examples.values())).shape[1:]):
        contents[STRANGE] = strange_png(found)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomic(out / name, content)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose --out") from None
    return [out / name for name in contents]


def markdown(found: Found) -> str:
    """Both tables for a reader, with what qualifies their numbers."""
    ratios = {first_bound(found.table): 0} | {f"LLR>{k}": k for k in _levels(found) if k}
    bounds = {_bound(found, k): k for k in _levels(found)}
    parts = ["# Unfamiliar data", _table(found, ratios, "ratio"), caption(found)]
    if len(bounds) > 1:
        parts += ["The bounds themselves, for comparison:", _table(found, bounds, "bound")]
    return "\n\n".join(parts) + "\n"


def caption(found: Found) -> str:
    """What the numbers are: scores, estimator, data, n, seed, step."""
    table, stamp = found.table, found.stamp
    levels, shown = len(_first(found).bound), len(_levels(found))
    drawn = "" if stamp["binarize"] == "none" else ", binarised"
    step = "" if stamp["step"] is None else f", step {stamp['step']:,}"
    if levels == 1:
        scores = f"A model with one layer has {first_bound(table)} only, and no LLR."
    else:
        scores = (
            f"LLR>k = L>0 - L>k, where L>k draws z1 to zk from their priors and -L>0 is "
            f"{first_bound(table)}."
        )
    if shown < levels:
        scores += f" {shown} of {levels} levels are shown, {CSV} has all."
    return (
        f"AUROC: how often an unfamiliar datum scores higher than a familiar one; 0.5 tells "
        f"nothing, 1 all. {scores} Familiar: {stamp['data']}{drawn}, {stamp['split']} split, "
        f"n = {table.n:,}; unfamiliar: {_counts(found)} of each. Bounds: {stamp['estimator']}, KL "
        f"{stamp['kl']}, noise seed {table.seed}{step}."
    )


def spreadsheet(found: Found) -> str:
    """A line for each set at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    levels = range(len(_first(found).bound))
    heads = [*(_bound(found, k) for k in levels), *(f"LLR>{k}" for k in levels[1:])]
    mean = f"mean {first_bound(found.table)[1:]}"
    writer.writerow(["set", "n", mean, *(f"AUROC of {head}" for head in heads)])
    for name, row in found.table.sets.items():
        writer.writerow([name, row.n, row.mean, *row.bound, *row.ratio[1:]])
    return file.getvalue()


def record(found: Found) -> dict[str, Any]:
    """Everything as plain values."""
    table = found.table
    return {
        "what": "AUROC of unfamiliar against familiar data; a higher score is unfamiliar",
        "auroc_bound": "of -L>k at index k; L>0 is the bound itself",
        "auroc_ratio": "of LLR>k = L>0 - L>k at index k; index 0 tells nothing",
        **found.stamp,
        "samples": table.samples,
        "seed": table.seed,
        "n": table.n,
        "mean": table.mean,
        "unit_of_mean": "nats per datum, of L>0",
        "sets": {
            name: {
                "n": row.n,
                "mean": row.mean,
                "auroc_bound": row.bound,
                "auroc_ratio": row.ratio,
            }
            for name, row in table.sets.items()
        },
    }


def _table(found: Found, columns: dict[str, int], scores: str) -> str:
    """Aligned, so that a terminal shows it as well."""
    rows = [["set", *columns]]
    for name, row in found.table.sets.items():
        numbers = [(getattr(row, scores) if k else row.bound)[k] for k in columns.values()]
        rows.append([name.replace("|", "/"), *(f"{x:.3f}" for x in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (rows[0], rule, *rows[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([cells[0].ljust(widths[0]), *rest])} |"


def _levels(found: Found) -> list[int]:
    """Every k, or of many some that are spread over all, the first and the last among them."""
    last = len(_first(found).bound) - 1
    if last < MOST:
        return list(range(last + 1))
    return sorted({round(i * last / (MOST - 1)) for i in range(MOST)})


def _bound(found: Found, k: int) -> str:
    return f"-L>{k}" if k else first_bound(found.table)


def _first(found: Found) -> Detection:
    return next(iter(found.table.sets.values()))


def _counts(found: Found) -> str:
    counts = sorted({row.n for row in found.table.sets.values()})
    return f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}"
