"""The table: a row for each variant, its numbers as mean and spread over the seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ladder.ablate.cell import Result
from ladder.ablate.declare import SEED, Ablation
from ladder.ablate.grid import Cell, short_names


class Spread(NamedTuple):
    """A number over seeds.

    Attributes:
        mean: Its mean.
        std: Its sample standard deviation; `None` of a single one.
        cells: How many.
    """

    mean: float
    std: float | None
    cells: int


class Row(NamedTuple):
    """A variant: the cells that differ only by their seed.

    Attributes:
        values: Label by key.
        numbers: By name, over the cells that are done: `parameters`, `steps`, `elbo`, `iw100`,
            `kl_z1`, `units_z1`, `active_units_z1`, `speaking_units_z1`, `seconds`.
        seeds: Of the cells that are done.
        failed: Sentence by the name of the cell.
        unfinished: Names of the cells still to be done.
    """

    values: dict[str, str]
    numbers: dict[str, Spread]
    seeds: list[int]
    failed: dict[str, str]
    unfinished: list[str]


class Table(NamedTuple):
    """An ablation and what came of it.

    Attributes:
        out: Its folder.
        ablation: What was asked for.
        cells: The cells in order.
        results: What those that are done come to, by name.
        rows: The variants in order.
    """

    out: Path
    ablation: Ablation
    cells: list[Cell]
    results: dict[str, Result]
    rows: list[Row]

    @property
    def keys(self) -> dict[str, str]:
        """Short name by varied key, without the seed."""
        keys = [axis.key for axis in self.ablation.axes if axis.key != SEED]
        return {k: k if name in RESERVED else name for k, name in short_names(keys).items()}

    @property
    def layers(self) -> list[str]:
        """Every layer of any cell, the data's side first."""
        found = {m[1] for row in self.rows for n in row.numbers if (m := LAYER.fullmatch(n))}
        return sorted(found, key=lambda name: int(name.removeprefix("z")))

    @property
    def columns(self) -> list[str]:
        """Names of the numbers, as `Row.numbers` has them."""
        samples = self.ablation.samples
        bounds = ["elbo", *([f"iw{samples}"] if samples else [])]
        names = self.layers
        layers = [f"{kind}_{z}" for kind in PER_LAYER for z in names]
        return ["parameters", "steps", *bounds, *layers, "seconds"]

    @property
    def failed(self) -> dict[str, str]:
        """Sentence by the name of the cell that failed."""
        return {name: reason for row in self.rows for name, reason in row.failed.items()}

    def label(self, row: Row) -> str:
        """What tells a row from the others."""
        many = len(row.values) > 1
        parts = [f"{self.keys[k]} {v}" if many else v for k, v in row.values.items()]
        return ", ".join(parts) or self.ablation.title


RESERVED = {"parameters", "steps", "seeds", "failed", "unfinished"}  # heads of other columns
PER_LAYER = ("kl", "units", "active_units", "speaking_units")
LAYER = re.compile(rf"(?:{'|'.join(PER_LAYER)})_(z\d+)")


def tabulate(
    out: Path,
    ablation: Ablation,
    cells: Sequence[Cell],
    results: Mapping[str, Result],
    failures: Mapping[str, str],
) -> Table:
    """Put cells together that differ only by their seed.

    Args:
        out: The ablation's folder.
        ablation: What was asked for.
        cells: Its cells.
        results: By name, of those that are done.
        failures: Sentence by name, of those that failed.

    Returns:
        The table.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        variant = tuple(label for key, label in cell.values.items() if key != SEED)
        groups.setdefault(variant, []).append(cell)
    rows = [_row(group, results, failures) for group in groups.values()]
    return Table(out, ablation, list(cells), dict(results), rows)


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of at least one number."""
    numbers = list(values)
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Spread(mean, None, 1)
    squares = math.fsum((x - mean) ** 2 for x in numbers)
    return Spread(mean, math.sqrt(squares / (len(numbers) - 1)), len(numbers))


def _row(cells: Sequence[Cell], results: Mapping[str, Result], failures: Mapping[str, str]) -> Row:
    done = [cell for cell in cells if cell.name in results]
    names = dict.fromkeys(n for cell in done for n in results[cell.name].numbers)
    numbers: dict[str, Any] = {
        name: spread(
            results[cell.name].numbers[name] for cell in done if name in results[cell.name].numbers
        )
        for name in names
    }
    return Row(
        {key: label for key, label in cells[0].values.items() if key != SEED},
        numbers,
        [cell.config.train.seed for cell in done if cell.config is not None],
        {cell.name: failures[cell.name] for cell in cells if cell.name in failures},
        [c.name for c in cells if c.name not in failures and c.name not in results],
    )
