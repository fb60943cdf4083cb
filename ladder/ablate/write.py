"""The table as Markdown for a reader, CSV for a spreadsheet, JSON with everything."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ladder.ablate.declare import SEED
from ladder.ablate.table import LAYER, Row, Spread, Table
from ladder.diagnostics import ACTIVE, SPEAKING
from ladder.files import write_atomic
from ladder.train.run import environment, git_commit

MARKDOWN, CSV, JSON, FIGURE = "table.md", "table.csv", "table.json", "figure.png"
HEADS = {"elbo": "ELBO", "kl": "KL", "active_units": "active", "seconds": "time, s"}


def write_table(table: Table) -> list[Path]:
    """Write table.md, table.csv, table.json and, if a cell is done, figure.png.

    Args:
        table: The table.

    Returns:
        The files.
    """
    contents: dict[str, str | bytes] = {
        MARKDOWN: markdown(table),
        CSV: spreadsheet(table),
        JSON: json.dumps(record(table), indent=2) + "\n",
    }
    if table.results:
        from ladder.ablate.figure import figure_png

        contents[FIGURE] = figure_png(table)
    for name, content in contents.items():
        write_atomic(table.out / name, content)
    return [table.out / name for name in contents]


def markdown(table: Table) -> str:
    """The table for a reader, with what qualifies its numbers, and why cells failed."""
    columns = [c for c in table.columns if not c.startswith(("units_", "speaking_units_"))]
    heads = [*table.keys.values(), "seeds", *map(_head, columns)]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in table.rows:
        numbers = [_number(row, name) for name in columns]
        lines.append(_line([*row.values.values(), _seeds(row), *numbers]))
    failures = [f"* `{name}` failed: {reason}" for name, reason in table.failed.items()]
    unfinished = [f"* `{name}` is not finished" for row in table.rows for name in row.unfinished]
    parts = [f"# {table.ablation.title}", "\n".join(lines), caption(table)]
    return "\n\n".join([*parts, *filter(None, ["\n".join([*failures, *unfinished])])]) + "\n"


def caption(table: Table) -> str:
    """What the numbers are: estimator, K, n, split, seeds."""
    samples = table.ablation.samples
    tests = _some({str(cell.test) for cell in table.cells if cell.test})
    bound = ""
    if samples:
        used = {str(min(table.ablation.n or c.test, c.test)) for c in table.cells if c.test}
        bound = f" IW-{samples}: importance-weighted, K = {samples}, n = {_some(used)}."
    seeds = sorted({seed for row in table.rows for seed in row.seeds})
    over = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else "seeds"
    kinds = {str(r.evaluations[0]["kl"]) for r in table.results.values()}
    return (
        f"Test split, nats per datum; mean ± sample standard deviation over {over}. "
        f"ELBO: 1 sample, n = {tests}, KL {_some(kinds)}.{bound} Active: units whose posterior "
        f"mean has a variance over the test data above {ACTIVE}, of all. Time: of the steps alone."
    )


def spreadsheet(table: Table) -> str:
    """A line for each variant at full precision; `_std` is empty of a single seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    statistics = [f"{name}{end}" for name in table.columns for end in ("", "_std")]
    writer.writerow([*table.keys.values(), "seeds", "failed", "unfinished", *statistics])
    for row in table.rows:
        numbers = [row.numbers.get(name) for name in table.columns]
        cells = [x for s in numbers for x in (("", "") if s is None else (s.mean, s.std))]
        seeds = " ".join(map(str, row.seeds))
        failed = " | ".join(row.failed.values())
        writer.writerow([*row.values.values(), seeds, failed, len(row.unfinished), *cells])
    return file.getvalue()


def record(table: Table) -> dict[str, Any]:
    """Everything as plain values, each cell with the records that its bounds come from."""
    ablation = table.ablation
    configured = next((cell.config for cell in table.cells if cell.config is not None), None)
    return {
        "what": f"ladder ablate {ablation.title}",
        "vary": {axis.key: axis.values for axis in ablation.axes},
        "overrides": ablation.overrides,
        "samples": ablation.samples,
        "n": ablation.n,
        "split": "test",
        "unit": "nats per datum; seconds of the training steps",
        "spread": f"sample standard deviation over {SEED}",
        "active": f"variance over data of the posterior mean > {ACTIVE}",
        "speaking": f"|KL| > {SPEAKING} nats",
        "layers": table.layers,
        "rows": [_row_record(row) for row in table.rows],
        "cells": _cell_records(table),
        "commit": git_commit(),
        "environment": _environment(configured),
    }


def _environment(config: Any) -> dict[str, Any]:
    """Without what differs between two calls that make the same table."""
    known = {} if config is None else environment(config)
    return {k: v for k, v in known.items() if k not in ("argv", "seed", "git_commit")}


def _row_record(row: Row) -> dict[str, Any]:
    return {
        "values": row.values,
        "seeds": row.seeds,
        "failed": row.failed,
        "unfinished": row.unfinished,
        "numbers": {name: value._asdict() for name, value in row.numbers.items()},
    }


def _cell_records(table: Table) -> list[dict[str, Any]]:
    records = []
    for cell in table.cells:
        done = table.results.get(cell.name)
        records.append(
            {
                "name": cell.name,
                "values": cell.values,
                "words": cell.words,
                "seed": None if cell.config is None else cell.config.train.seed,
                "parameters": cell.parameters,
                "steps": cell.steps,
                "error": table.failed.get(cell.name),
                "finished": done is not None,
                "numbers": {} if done is None else done.numbers,
                "evaluations": [] if done is None else done.evaluations,
                "trained_at_commit": None if done is None else done.trained_at,
            }
        )
    return records


def _head(column: str) -> str:
    layer = LAYER.fullmatch(column)
    if layer is not None:
        return f"{HEADS[column.removesuffix(f'_{layer[1]}')]} {layer[1]}"
    return f"IW-{column[2:]}" if column.startswith("iw") else HEADS.get(column, column)


def _number(row: Row, name: str) -> str:
    value = row.numbers.get(name)
    if value is None:
        return ""
    if name in ("parameters", "steps"):
        return f"{value.mean:,.0f}"
    if name.startswith("active_units"):
        of = row.numbers[name.removeprefix("active_")].mean
        return f"{_spread(value, 1)} / {of:g}"
    return _spread(value, 0 if name == "seconds" else 2)


def _spread(value: Spread, digits: int) -> str:
    mean = f"{value.mean:.{digits}f}"
    return mean if value.std is None else f"{mean} ± {value.std:.{digits}f}"


def _seeds(row: Row) -> str:
    done, missing = len(row.seeds), len(row.failed) + len(row.unfinished)
    if row.failed and not done:
        return "failed"
    return f"{done} of {done + missing}" if missing else str(done)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _some(values: set[str]) -> str:
    ordered = sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
    return ", ".join(ordered) or "none"
