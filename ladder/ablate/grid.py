"""From an ablation to its cells: every combination of values, named and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from pydantic import ValidationError

from ladder.ablate.declare import Ablation
from ladder.build import resolve
from ladder.config import Config, ModelConfig
from ladder.errors import UserError

LONGEST_VALUE, LONGEST_NAME = 48, 200  # of names of folders


class Cell(NamedTuple):
    """One combination of values.

    Attributes:
        name: Of its run directory, made of its values alone.
        values: Label by key.
        words: The words `key=value` that make it from the base.
        config: Its configuration; `None` if there is none for this combination.
        error: Why it cannot be trained, a sentence.
        parameters: Of its model.
        steps: Optimiser steps.
        test: Number of test data.
    """

    name: str
    values: dict[str, str]
    words: list[str]
    config: Config[ModelConfig] | None
    error: str | None = None
    parameters: int = 0
    steps: int = 0
    test: int = 0


def grid(ablation: Ablation) -> list[Cell]:
    """Resolve every combination, the first axis slowest.

    Args:
        ablation: What is ablated.

    Returns:
        The cells; a combination that cannot be has its sentence as `error`.

    Raises:
        UserError: If a key does not exist, or a value is wrong whatever the others are.
    """
    labels = [list(axis.values) for axis in ablation.axes]
    cells = [_cell(ablation, combination) for combination in product(*labels)]
    _check_names(cells)
    failures: dict[str, UserError] = {}
    for i, cell in enumerate(cells):
        try:
            cells[i] = cell._replace(config=resolve(ablation.base, _words(ablation, cell)))
        except UserError as error:
            failures[cell.name] = error
            cells[i] = cell._replace(error=_without_file(error, ablation))
    if failures:
        _check_values(ablation, cells, failures)
    return cells


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key without its section, as long as that tells them apart."""
    short = {key: key.partition(".")[2] or key for key in keys}
    unique = len(set(short.values())) == len(short)
    return short if unique else {key: key for key in keys}


def _cell(ablation: Ablation, combination: tuple[str, ...]) -> Cell:
    values = {axis.key: v for axis, v in zip(ablation.axes, combination, strict=True)}
    words = [word(axis.key, axis.values[values[axis.key]]) for axis in ablation.axes]
    short = short_names(list(values))
    name = ",".join(f"{_slug(short[key])}={_slug(label)}" for key, label in values.items())
    return Cell(_shortened(name, LONGEST_NAME), values, words, None)


def _words(ablation: Ablation, cell: Cell) -> list[str]:
    return [*ablation.overrides, *cell.words]


def word(key: str, value: Any) -> str:
    """The word `key=value` of a command line: JSON is YAML."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _slug(text: str) -> str:
    # A folder's name on any system, and a word in any shell.
    text = text.replace("[", "").replace("]", "")
    return _shortened(re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_") or "_", LONGEST_VALUE)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _check_names(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.lower(), cell)
        if other is not cell:
            key = next(k for k in cell.values if cell.values[k] != other.values[k])
            raise UserError(
                f"vary.{key}: '{cell.values[key]}' and '{other.values[key]}' would share the "
                f"folder '{cell.name}'; name them further apart"
            )


def _check_values(
    ablation: Ablation, cells: Sequence[Cell], failures: Mapping[str, UserError]
) -> None:
    """Tell a mistake, which no other value could mend, from a combination that cannot be."""
    base = _base_mistakes(ablation)
    for axis in ablation.axes:
        for label in axis.values:
            having = [cell for cell in cells if cell.values[axis.key] == label]
            if not all(cell.name in failures for cell in having):
                continue
            for cell in having:
                if not _is_combination(failures[cell.name]):
                    about = [s for s in _lines(cell) if s not in base and _is_about(s, axis.key)]
                    if about:
                        raise UserError(f"vary: {about[0]}")
    if len(failures) == len(cells):
        raise UserError("\n".join(base) or str(cells[0].error))


def _base_mistakes(ablation: Ablation) -> list[str]:
    try:
        resolve(ablation.base, ablation.overrides)
    except UserError as error:
        return _without_file(error, ablation).splitlines()
    return []


def _is_combination(error: UserError) -> bool:
    """Whether each value alone was right, and only a check of several fields refused."""
    cause = error.__context__
    return isinstance(cause, ValidationError) and all(
        details["type"] == "value_error" for details in cause.errors()
    )


def _lines(cell: Cell) -> list[str]:
    return (cell.error or "").splitlines()


def _is_about(sentence: str, key: str) -> bool:
    """Whether a sentence speaks of a key, of what is below it, or of a part that is no field."""
    if sentence.startswith(f"'{key}="):  # an item that the list does not have
        return True
    stranger = re.search(r"no field '([^']*)'", sentence)
    if stranger is not None and stranger[1] in re.findall(r"[^.\[\]]+", key):
        return True
    path = sentence.partition(": ")[0]
    return path == key or path.startswith((f"{key}.", f"{key}["))


def _without_file(error: UserError, ablation: Ablation) -> str:
    prefix = f"{ablation.base}: "
    return "\n".join(line.removeprefix(prefix) for line in str(error).splitlines())
