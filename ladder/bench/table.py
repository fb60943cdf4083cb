"""Rows of measurements as a table, for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
COLUMNS = {
    "code": "code",
    "preset": "preset",
    "overrides": "with",
    "batch": "batch",
    "device": "device",
    "precision": "precision",
    "mode": "mode",
    "recompute": "recompute",
    "images_per_s": "images/s",
    "seconds_per_step": "s/step",
    "cpu_seconds_per_step": "CPU s/step",
    "first_step_seconds": "first step, s",
    "graphs": "graphs",
    "graph_breaks": "breaks",
    "peak_memory_gib": "peak GiB",
    "samples_per_s": "samples/s",
    "encoded_per_s": "encoded/s",
    "iw_passes_per_s": "IW passes/s",
    "tflops_per_step": "TFLOP/step",
    "best_matrix_rate_gflops": "matmul, GFLOP/s",
    "share_of_matrix_rate": "share of matmul",
    "largest_batch": "largest batch",
    "most": "of at most",
    "failed": "failed",
}
LONG = ("cpu_seconds_per_step", "tflops_per_step")  # left to files, for a terminal's sake
SAME = ("overrides", "device", "precision", "mode", "recompute")  # said once, if all rows agree


def environment(machine: Row) -> str:
    """The machine in a line, such as `AMD EPYC, 2 threads, torch 2.14.1`."""
    gpu = f"{machine['gpu']}, CUDA {machine['cuda']}, " if "gpu" in machine else ""
    threads = machine["threads"]
    plural = "" if threads == 1 else "s"
    return f"{gpu}{machine['cpu']}, {threads} thread{plural}, torch {machine['torch']}"


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """Keys and heads of the columns; one that all rows leave empty is left out."""
    return {k: v for k, v in COLUMNS.items() if any(row.get(k) not in (None, []) for row in rows)}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    Args:
        rows: Measurements, by the keys of `COLUMNS`.

    Returns:
        The table, without a line break at its end.
    """
    heads = columns(rows)
    lines = [list(heads.values()), ["---"] * len(heads)]
    lines += [[cell(row.get(key)) for key in heads] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(rows: Sequence[Row]) -> str:
    """The rows for a terminal, with what they all share in a line of its own above.

    Args:
        rows: Measurements, by the keys of `COLUMNS`.

    Returns:
        The table, without a line break at its end.
    """
    heads = {key: head for key, head in columns(rows).items() if key not in LONG}
    shared = {
        key: cell(rows[0].get(key))
        for key in SAME
        if key in heads and all(row.get(key) == rows[0].get(key) for row in rows)
    }
    shown = {key: head for key, head in heads.items() if key not in shared}
    lines = [list(shown.values())] + [[cell(row.get(key)) for key in shown] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = [key not in ("code", "preset", "overrides", "mode", "failed") for key in shown]
    above = ", ".join(f"{COLUMNS[key]} {value}" for key, value in shared.items())
    return "\n".join([above, *(_aligned(line, widths, words) for line in lines)])


def _aligned(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = zip(line, widths, right, strict=True)
    return "  ".join(
        word.rjust(width) if aside else word.ljust(width) for word, width, aside in cells
    ).rstrip()


def cell(value: Any) -> str:
    """A value with three digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)
