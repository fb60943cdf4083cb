"""Checkpoints that are whole or not there, and resuming from them bit for bit.

A checkpoint is a folder `step-00001000` with config.json and model.safetensors, the weights one
would use (the average, with EMA), so that `from_pretrained` takes it; and state.pt, what else
training needs, tensors and plain values only. The files `last` and `best` name one.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from ladder.config import leaves
from ladder.errors import UserError, WorkFailed
from ladder.files import sync, write_atomic
from ladder.parse import check
from ladder.pretrained import (
    CONFIG,
    WEIGHTS,
    config_json,
    load_weights,
    pointed,
    read_weights,
    weights_bytes,
)
from ladder.train.adamax import Adamax
from ladder.train.ema import averaged
from ladder.train.state import State

STATE = "state.pt"
LATER = ("multipliers", "skipping", "penalising", "raised")


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a checkpoint, point `last` to it, then drop the oldest.

    Args:
        folder: The run's `checkpoints` folder.
        state: The run between two steps.
        keep: Newest checkpoints to keep, besides `best`.

    Returns:
        The checkpoint.

    Raises:
        WorkFailed: If it cannot be written; earlier checkpoints are untouched.
    """
    name = f"step-{state.step:08d}"
    try:
        folder.mkdir(exist_ok=True)
        if not (folder / name).is_dir():
            _write(folder, name, state)
        write_atomic(folder / "last", name)
    except OSError as error:
        previous = pointed(folder, "last")
        whole = (
            f"{previous.name}, the previous one, is whole" if previous else "none was written yet"
        )
        raise WorkFailed(
            f"{folder / name}: the checkpoint cannot be written: {error.strerror}; {whole}"
        ) from None
    prune(folder, keep)
    return folder / name


def _write(folder: Path, name: str, state: State) -> None:
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with averaged(state):
            write_atomic(temporary / WEIGHTS, weights_bytes(state.model.state_dict()))
        write_atomic(temporary / CONFIG, config_json(state.model))
        buffer = io.BytesIO()
        torch.save(_rest(state), buffer)
        write_atomic(temporary / STATE, buffer.getvalue())
        sync(temporary)
        temporary.replace(folder / name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rest(state: State) -> dict[str, Any]:
    # With EMA the safetensors file holds the average; the weights in training are kept here.
    weights = None if state.average is None else [w.detach() for w in state.weights]
    return {
        "step": state.step,
        "optimizer": state.optimizer.state_dict(),
        "weights": weights,
        "meter": state.meter.state_dict(),
        "multipliers": state.multipliers and state.multipliers.state_dict(),
        "skipping": state.skipping.state_dict(),
        "penalising": state.penalising and state.penalising.state_dict(),
        "raised": state.raised,
    }


def restore(path: Path, state: State) -> None:
    """Take up a run where a checkpoint left it.

    Args:
        path: The checkpoint.
        state: A new state of the same configuration; changed in place.

    Raises:
        UserError: If a file is truncated, pickled, or of another model; nothing is written then.
    """
    weights = read_weights(path / WEIGHTS)
    rest = _read_rest(path / STATE)
    _same_model(path / CONFIG, state)
    load_weights(state.model, weights, str(path / WEIGHTS))
    try:
        _take_up(rest, state)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path / STATE}: of another optimiser or model: {error}") from None


def _same_model(path: Path, state: State) -> None:
    """Refuse a model of equal shapes that computes something else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a model's config: {error}") from None
    mine = state.model.config
    if isinstance(raw, dict) and raw.get("system") == mine.system:
        raw = check(type(mine), raw, str(path)).model_dump(mode="json")
    theirs, ours = leaves(raw), leaves(mine.model_dump(mode="json"))
    for field in [*ours, *theirs]:
        if theirs.get(field) != ours.get(field):
            raise UserError(
                f"{path}: another model: its {field} is {theirs.get(field)!r}, "
                f"not {ours.get(field)!r}"
            )


@torch.no_grad()
def _take_up(rest: dict[str, Any], state: State) -> None:
    if (state.average is None) != (rest["weights"] is None):
        raise ValueError("train.ema was changed between null and a value")
    if state.average is not None:
        for parameter, mean, weight in zip(
            state.weights, state.average, rest["weights"], strict=True
        ):
            mean.copy_(parameter)
            parameter.copy_(weight)
    set_moments(state, rest["optimizer"]["state"])
    state.meter.load_state_dict(rest["meter"])
    if not state.world.leads:  # what all of them had metered is the first one's
        state.meter.clear()
    if state.multipliers is not None and rest["multipliers"] is not None:
        state.multipliers.load_state_dict(rest["multipliers"])
    if state.penalising is not None and rest["penalising"] is not None:
        state.penalising.load_state_dict(rest["penalising"])
    if rest["skipping"] is not None:
        state.skipping.load_state_dict(rest["skipping"])
    state.raised = rest["raised"] or 1
    state.accumulate *= state.raised
    state.step = rest["step"]
    state.healthy.fill_(state.step)


@torch.no_grad()
def set_moments(state: State, moments: dict[int, Any]) -> None:
    """Give the optimiser its moments; options such as weight decay stay the configuration's.

    Args:
        state: A run; changed in place.
        moments: State of the optimiser by the number of a parameter.

    Raises:
        ValueError: If they are of another optimiser.
    """
    own = "exp_inf" if isinstance(state.optimizer, Adamax) else "exp_avg_sq"
    if any(own not in values for values in moments.values()):
        raise ValueError("train.optimizer was changed to or from adamax, whose moments are others")
    options = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": options})
    if state.rate is not None:  # loading has put a copy in its place
        state.optimizer.param_groups[0]["lr"] = state.rate
    for parameter, values in state.optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # Fused kernels go through memory in order, and the file's order may be another.
                values[name] = torch.empty_like(parameter).copy_(value)


def _read_rest(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        rest = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        needed = {key: rest[key] for key in ("step", "optimizer", "weights", "meter")}
        # Older ones have none of these.
        return {**needed, **{key: rest.get(key) for key in LATER}}
    except (
        OSError,
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
    ):
        raise UserError(
            f"{path}: truncated, or not a training state that ladder wrote; "
            "resume from an earlier checkpoint by writing its name into 'last'"
        ) from None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, `last` and `best`."""
    named = {pointed(folder, "last"), pointed(folder, "best")}
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old not in named:
            _delete(old)


def tidy(folder: Path, step: int) -> None:
    """Before going on from a step: delete what lies beyond it, and what a kill left half done.

    Args:
        folder: The run's `checkpoints` folder.
        step: Where training goes on.
    """
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            _delete(path)
    best = pointed(folder, "best")
    if best is not None and not best.is_dir():
        (folder / "best").unlink()


def _delete(checkpoint: Path) -> None:
    # Renamed first, so that no name of a checkpoint ever stands for half of one.
    condemned = checkpoint.with_name(f".{checkpoint.name}.tmp")
    shutil.rmtree(condemned, ignore_errors=True)
    checkpoint.replace(condemned)
    shutil.rmtree(condemned, ignore_errors=True)
