"""Names and shapes of state dicts, strictly: how two differ, and theirs under our names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from ladder.errors import UserError


def renamed(
    state_dict: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    names: Mapping[str, str],
    layer: str,
) -> dict[str, Tensor]:
    """Give the tensors of a released state dict our names; values are not touched.

    Args:
        state_dict: The released model's `state_dict()`, also one wrapped for data parallelism
            (every key beginning with `module.`).
        own: State dict of our model; only shapes are read.
        names: Their name for each of our keys.
        layer: Pattern of what stands before the dot in front of a tensor's name within a layer of
            theirs, by which differences are grouped.

    Returns:
        Each of our keys with one of their tensors, in our order.

    Raises:
        UserError: If keys are missing, left over or of another shape, a line for each of their
            layers.
    """
    theirs = dict(state_dict)
    if theirs and all(key.startswith("module.") for key in theirs):
        theirs = {key.removeprefix("module."): tensor for key, tensor in theirs.items()}
    expected = {names[key]: own[key].shape for key in own}
    lines = difference(expected, {key: tensor.shape for key, tensor in theirs.items()}, layer)
    if lines:
        raise UserError(
            "convert_released: the state dict is not of this configuration:\n" + "\n".join(lines)
        )
    return {key: theirs[names[key]] for key in own}


def difference(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    layer: str,
    most: int = 8,
) -> list[str]:
    """How the tensors found differ from those expected, a line for each layer.

    Args:
        expected: Shapes by name.
        found: Shapes by name.
        layer: Pattern of a layer's name.
        most: Lines at the most; the last then says how many are left out.

    Returns:
        The lines; none if names and shapes agree.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted({*expected, *found}, key=_natural):
        match = re.match(rf"({layer})\.(.+)", key)
        place, rest = (match[1], key[match.end(1) + 1 :]) if match else _split(key)
        if key not in found:
            groups[place].append(f"{rest} missing")
        elif key not in expected:
            groups[place].append(f"{rest} unexpected")
        elif tuple(expected[key]) != tuple(found[key]):
            groups[place].append(f"{rest} {_size(found[key])}, not {_size(expected[key])}")
    lines = [f"  {place}: {_few(items)}" for place, items in groups.items()]
    more = [f"  and {len(lines) - most} more parts"] if len(lines) > most else []
    return lines[:most] + more


def _split(key: str) -> tuple[str, str]:
    head, _, rest = key.partition(".")
    return (head, rest) if rest else ("model", key)


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers in a name sort as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _few(items: list[str], most: int = 3) -> str:
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
