"""NumPy files as tensors: which arrays, which axes, which values."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.data.holdout import training_rows
from ladder.data.quote import quoted
from ladder.errors import UserError

PAIRS = (("train", "test"), ("x_train", "x_test"))
CHANNELS = (1, 3, 4)


def load(path: Path, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read a .npy or .npz file.

    Axes may be [N, D], [N, H, W], [N, H, W, C] or [N, C, H, W]; where two readings are possible,
    the one that fits the model wins, then the one with the channels last. Floats are in [0, 1];
    integers in 0 to 255, except that a file of nothing but zeros and ones (and of booleans) is
    taken as black and white, 0 and 255.

    Args:
        path: Holds the arrays `train` and `test`, or `x_train` and `x_test`; or one array, the
            last tenth of which (at least one row) is for testing.
        shape: Shape of one datum of the model, which decides between readings.

    Returns:
        Training and test data, both uint8 or both float32, [N, D] or [N, C, H, W].

    Raises:
        UserError: If the file cannot be read, or holds other arrays, axes or values.
    """
    train, test = _parts([_axes(array, shape, path) for array in _open(path)], path)
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"data: {path.name} holds {_said(train)} to train on but {_said(test)} to test on; "
            "give both the same type and shape"
        )
    return _values(train, test, path.name)


def _open(path: Path) -> list[np.ndarray]:
    """The arrays to train and to test on, or the only one."""
    if not path.is_file():
        raise UserError(f"data: there is no file {path}; give the path of a .npy or .npz file")
    try:
        with path.open("rb") as file:  # given a path, NumPy leaves a damaged archive open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return [loaded]
            return [loaded[key] for key in _keys(loaded.files, path)]
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"data: {path} holds Python objects, which are not read because they could run "
                "code; save arrays of numbers instead"
            ) from error
        raise UserError(
            f"data: {path} cannot be read as a NumPy file ({quoted(error)}); it may be cut "
            "off or damaged, so write it again"
        ) from error


def _keys(found: list[str], path: Path) -> Sequence[str]:
    for pair in PAIRS:
        if set(pair) <= set(found):
            return pair
    if len(found) == 1:
        return found
    raise UserError(
        f"data: {path.name} holds {', '.join(map(repr, found)) or 'no arrays'}; name two arrays "
        "'train' and 'test', or save a single one"
    )


def _parts(arrays: list[np.ndarray], path: Path) -> tuple[np.ndarray, np.ndarray]:
    if len(arrays) == 2:
        return arrays[0], arrays[1]
    n = training_rows(len(arrays[0]), f"data: {path.name}")
    return arrays[0][:n], arrays[0][n:]


def _axes(array: np.ndarray, shape: Sequence[int], path: Path) -> np.ndarray:
    """Bring an array to [N, D] or [N, C, H, W]."""
    if array.ndim == 2 or (array.ndim > 1 and array.shape[1:] == tuple(shape)):
        return array
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        readings = (array.transpose(0, 3, 1, 2), array)
        best = max(readings, key=lambda a: _fit(a, shape))  # the first one of equals
        if any(_fit(best, shape)):
            return best
    raise UserError(
        f"data: {path.name} holds an array {list(array.shape)}; "
        "give [N, D], [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1, 3 or 4"
    )


def _fit(array: np.ndarray, shape: Sequence[int]) -> tuple[bool, bool, bool]:
    found = array.shape[1:]
    return found == tuple(shape), found[0] == shape[0], found[0] in CHANNELS


def _said(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _values(train: np.ndarray, test: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
    """Check the range and bring both parts to uint8 or float32."""
    if train.dtype.kind == "f":
        return _floats(train, test, name)
    if train.dtype.kind not in "bui":
        raise UserError(
            f"data: {name} holds values of type {train.dtype}; "
            "give integers in 0 to 255 or floats in [0, 1]"
        )
    low, high = (int(end) for end in _range(train, test))
    if low < 0 or high > 255:
        raise UserError(
            f"data: {name} holds integers from {low} to {high}; "
            "scale them to 0 to 255, or to floats in [0, 1]"
        )
    scale = 255 if high <= 1 else 1
    return _bytes(train, scale), _bytes(test, scale)


def _bytes(array: np.ndarray, scale: int) -> Tensor:
    values = np.ascontiguousarray(array, dtype=np.uint8)
    return torch.from_numpy(values if scale == 1 else values * np.uint8(scale))


def _range(train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
    """Smallest and largest value of both parts; NaN if there is one."""
    ends = [end for part in (train, test) if part.size for end in (part.min(), part.max())]
    return (np.min(ends), np.max(ends)) if ends else (0, 0)


def _floats(train: np.ndarray, test: np.ndarray, name: str) -> tuple[Tensor, Tensor]:
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is found below
        train, test = (np.ascontiguousarray(a, dtype=np.float32) for a in (train, test))
    low, high = (float(end) for end in _range(train, test))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(
            f"data: {name} holds NaN or infinite values (minimum {low:g}, maximum {high:g}); "
            "remove or replace them"
        )
    if low < 0 or high > 1:
        raise UserError(
            f"data: {name} holds floats from {low:g} to {high:g}, not in [0, 1]; {_fix(low, high)}"
        )
    return torch.from_numpy(train), torch.from_numpy(test)


def _fix(low: float, high: float) -> str:
    if low >= 0 and high <= 255:
        return "divide them by 255" if high > 2 else f"divide them by {high:g}"
    if low >= -1 and high <= 1:
        return "give (x + 1) / 2"
    return "give (x - minimum) / (maximum - minimum)"
