"""Before anything is trained: build every cell's model without memory, and count its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ladder.ablate.grid import Cell
from ladder.build import build_model
from ladder.config import Config, ModelConfig, leaves
from ladder.data import load
from ladder.errors import UserError
from ladder.train.penalising import check_objective
from ladder.train.run import RESOLVED, read_config
from ladder.train.state import choose_device

# What may differ between two calls on the same folder without making another cell of it.
FREE = {"data.root", "train.time_limit", "train.resume", "train.keep", "train.checkpoint_every"}


class Sizes(NamedTuple):
    """Numbers of data."""

    train: int
    test: int


def prepare(cells: Sequence[Cell]) -> list[Cell]:
    """Fill in parameters, steps and data, or why a cell cannot be.

    Args:
        cells: From `grid`.

    Returns:
        The cells.

    Raises:
        UserError: If no cell can be, or a device is not there.
    """
    for device in {cell.config.train.device for cell in cells if cell.config is not None}:
        choose_device(device)
    known: dict[str, Sizes | UserError] = {}
    prepared = [_prepared(cell, cell.config, known) for cell in cells]
    if all(cell.error is not None for cell in prepared):
        raise UserError(str(prepared[0].error))
    return prepared


def _prepared(
    cell: Cell, config: Config[ModelConfig] | None, known: dict[str, Sizes | UserError]
) -> Cell:
    if config is None:
        return cell
    sizes = _sizes(config, known)
    if isinstance(sizes, UserError):
        return cell._replace(error=str(sizes))
    cell = cell._replace(steps=config.train.total_steps(sizes.train), test=sizes.test)
    try:
        return _built(cell, config)
    except Exception as error:  # whatever a system of the user's own does
        return cell._replace(error=f"the model cannot be built: {error}")


def _built(cell: Cell, config: Config[ModelConfig]) -> Cell:
    check_objective(config)
    with torch.device("meta"):
        model = build_model(config=config)
        model(torch.zeros(2, *config.model.shape))
    return cell._replace(parameters=sum(p.numel() for p in model.parameters()))


def _sizes(config: Config[ModelConfig], known: dict[str, Sizes | UserError]) -> Sizes | UserError:
    """How many data; read once for all cells that share them."""
    key = f"{config.data.model_dump_json()} {config.model.shape}"
    if key not in known:
        try:
            data = load(config.data, config.model.shape, config.train.seed)
            known[key] = Sizes(len(data.train), len(data.test))
        except UserError as error:
            known[key] = error
    return known[key]


def check_same(out: Path, cells: Sequence[Cell]) -> None:
    """Refuse a folder whose cells were trained with another configuration.

    Args:
        out: The ablation's folder.
        cells: What is to be trained there.

    Raises:
        UserError: It names the cell and the field that differs.
    """
    for cell in cells:
        if cell.config is None or not (out / cell.name / RESOLVED).is_file():
            continue
        theirs = leaves(read_config(out / cell.name).model_dump(mode="json"))
        ours = leaves(cell.config.model_dump(mode="json"))
        for key in sorted((ours.keys() | theirs.keys()) - FREE):
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"{out / cell.name}: was trained with {key} {theirs.get(key)!r}, not "
                    f"{ours.get(key)!r}; give another --out"
                )
