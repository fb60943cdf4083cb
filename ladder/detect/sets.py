"""The unfamiliar sets of a run: made from its own data, or read as `data=` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ladder.config import DataConfig
from ladder.data import Data, Rows, load
from ladder.data.sets import NAMES, Misfit, as_test
from ladder.data.strange import CHANGES, fitting, strange_sets
from ladder.errors import UserError, suggest


def default_names(data: DataConfig, shape: Sequence[int]) -> list[str]:
    """The bundled digits, unless they are the familiar ones, and every change that fits.

    Args:
        data: The familiar data.
        shape: Shape of one datum.

    Returns:
        The names.

    Raises:
        UserError: If the data are no images.
    """
    names = fitting(shape)
    if not names:
        raise UserError(
            f"ood: data of shape {list(shape)} are no images, so nothing unfamiliar can be made "
            "of them; name sets with --against"
        )
    return [*(["digits"] if data.name != "digits" and shape[0] in (1, 3) else []), *names]


def unfamiliar_sets(
    data: DataConfig, shape: Sequence[int], grey: Data, names: Sequence[str], n: int | None
) -> dict[str, Data]:
    """Make or read unfamiliar sets, and binarise them as the familiar ones are.

    Args:
        data: How the familiar data are prepared.
        shape: Shape of one datum.
        grey: Familiar data before they are binarised, from which others are made.
        names: Changes, or sets as `data.name` takes them.
        n: Most data of a set.

    Returns:
        The sets by name; of a folder or a file, its last part where no other set has it.

    Raises:
        UserError: If there is no such change or set, or it does not fit the model.
    """
    sets: dict[str, Data] = {}
    for name in dict.fromkeys(names):
        short = Path(name).name
        # A folder may be called like a change, or like another folder.
        label = name if short in sets or (short in CHANGES and name not in CHANGES) else short
        if name in CHANGES:
            images: Data = strange_sets(grey[:n], [name])[name]
        else:
            images = _read(data, shape, name, n)
        sets[label] = as_test(images, data.binarize)
    return sets


def _read(data: DataConfig, shape: Sequence[int], name: str, n: int | None) -> Tensor:
    """Any of its data are unfamiliar: those for testing, and where they are few the others."""
    path = Path(name).expanduser()
    if name not in NAMES and not path.exists() and path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(
            f"ood: --against: there is no set, change, folder or array '{name}'"
            f"{suggest(name, [*CHANGES, *NAMES])}"
        )
    plain = {"name": name, "binarize": "none", "shuffle": None, "validation": 0, "flip": False}
    if name == "digits":  # they come in any size, and so in any colour
        plain["channels"] = shape[0] if shape[0] in (1, 3) else None
    try:
        parts = load(data.model_copy(update=plain), shape)
    except Misfit as error:
        fix = error.fix or f"data of shape {list(shape)}"
        raise UserError(f"ood: --against: {error.misfit}; give {fix}") from None
    test = _held(parts.test[:n])
    more = _held(parts.train[: None if n is None else n - len(test)])
    return torch.cat([test, more])


def _held(images: Data) -> Tensor:
    return images.read(torch.arange(len(images))) if isinstance(images, Rows) else images
