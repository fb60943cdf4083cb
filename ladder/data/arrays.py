"""NumPy files as tensors: which arrays, which axes, which values.

A .npy file of bytes from `MAPPED` bytes on is not read but mapped into memory, so that only the
rows of a batch are, when they are gathered. Its values are looked at as far as it takes to find
one that is neither 0 nor 1: in images of greys within the first chunk.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.data.holdout import check_enough
from ladder.data.quote import quoted
from ladder.data.rows import Data, Rows
from ladder.errors import UserError

PAIRS = (("train", "test"), ("x_train", "x_test"))
CHANNELS = (1, 3, 4)

# Size of a .npy file from which on it is mapped.
MAPPED = 2**30

# Data looked at together for a value that is neither 0 nor 1; few, because they may be large.
CHUNK = 16

Choice = Callable[[list[str]], Sequence[str]]


def load(path: Path, shape: Sequence[int]) -> tuple[Data, Data | None]:
    """Read a .npy or .npz file.

    Axes may be [N, D], [N, H, W], [N, H, W, C] or [N, C, H, W]; where two readings are possible,
    the one that fits the model wins, then the one with the channels last. Floats are in [0, 1];
    integers in 0 to 255, except that a file of nothing but zeros and ones (and of booleans) is
    taken as black and white, 0 and 255.

    Args:
        path: Holds the arrays `train` and `test`, or `x_train` and `x_test`; or one array.
        shape: Shape of one datum of the model, which decides between readings.

    Returns:
        Training and test data, both uint8 or both float32, [N, D] or [N, C, H, W]; None if there
        is only one array.

    Raises:
        UserError: If the file cannot be read, or holds other arrays, axes or values.
    """
    parts = [_axes(array, shape, path) for array in _open(path)]
    if len(parts) == 1:
        check_enough(len(parts[0]), f"data: {path.name}")
        return _values(parts, path.name)[0], None
    train, test = parts
    if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"data: {path.name} holds {_said(train)} to train on but {_said(test)} to test on; "
            "give both the same type and shape"
        )
    first, second = _values(parts, path.name)
    return first, second


def members(path: Path, choose: Choice) -> list[np.ndarray]:
    """Read arrays of a file, without their meaning.

    Args:
        path: A .npy or .npz file.
        choose: From the names of the arrays of a .npz file to those that are read.

    Returns:
        The chosen arrays, or the only one of a .npy file, which may be mapped.

    Raises:
        UserError: If the file cannot be read; or what `choose` raises.
    """
    try:
        mapped = _mapped(path)
        if mapped is not None:
            return [mapped]
        with path.open("rb") as file:  # given a path, NumPy leaves a damaged archive open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return [loaded]
            return [loaded[key] for key in choose(loaded.files)]
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error) or "Python objects" in str(error):
            raise UserError(
                f"data: {path} holds Python objects, which are not read because they could run "
                "code; save arrays of numbers instead"
            ) from error
        raise UserError(
            f"data: {path} cannot be read as a NumPy file ({quoted(error)}); it may be cut "
            "off or damaged, so write it again"
        ) from error


def _mapped(path: Path) -> np.memmap | None:
    """A large file of bytes, to read only, so that it may be larger than the memory."""
    if path.suffix.lower() != ".npy" or path.stat().st_size < MAPPED:
        return None
    array: np.memmap = np.lib.format.open_memmap(path, mode="r")
    return array if array.dtype == np.uint8 else None


def _open(path: Path) -> list[np.ndarray]:
    """The arrays to train and to test on, or the only one."""
    if not path.is_file():
        raise UserError(f"data: there is no file {path}; give the path of a .npy or .npz file")
    return members(path, lambda found: _keys(found, path))


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


def _values(parts: list[np.ndarray], name: str) -> list[Data]:
    """Check the range and bring all parts to uint8 or to float32."""
    kind = parts[0].dtype.kind
    if kind == "f":
        return _floats(parts, name)
    if kind not in "bui":
        raise UserError(
            f"data: {name} holds values of type {parts[0].dtype}; "
            "give integers in 0 to 255 or floats in [0, 1]"
        )
    if parts[0].dtype.itemsize > 1 or kind == "i":  # what else is there cannot leave the range
        low, high = (int(end) for end in _range(parts))
        if low < 0 or high > 255:
            raise UserError(
                f"data: {name} holds integers from {low} to {high}; "
                "scale them to 0 to 255, or to floats in [0, 1]"
            )
    # All are looked at only if there is nothing but zeros and ones.
    grey = any(chunk.max() > 1 for part in parts for chunk in _chunks(part))
    return [_bytes(part, 1 if grey else 255) for part in parts]


def _chunks(part: np.ndarray) -> Iterator[np.ndarray]:
    rows = range(0, len(part), CHUNK) if part.size else ()
    return (part[first : first + CHUNK] for first in rows)


def _bytes(array: np.ndarray, scale: int) -> Data:
    if isinstance(array, np.memmap):
        rows = Rows(_gatherer(array), torch.arange(len(array)), array.shape[1:])
        return rows if scale == 1 else rows.map(lambda bits: bits * scale)
    values = np.ascontiguousarray(array, dtype=np.uint8)
    return torch.from_numpy(values if scale == 1 else values * np.uint8(scale))


def _gatherer(array: np.ndarray) -> Callable[[Tensor], Tensor]:
    # By NumPy, because torch takes no array that is read-only, and what may be written to has
    # to find room in memory.
    return lambda index: torch.from_numpy(np.ascontiguousarray(array[index.numpy()]))


def _range(parts: list[np.ndarray]) -> tuple[Any, Any]:
    """Smallest and largest value of all parts; NaN if there is one."""
    ends = [end for part in parts if part.size for end in (part.min(), part.max())]
    return (np.min(ends), np.max(ends)) if ends else (0, 0)


def _floats(parts: list[np.ndarray], name: str) -> list[Data]:
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is found below
        parts = [np.ascontiguousarray(part, dtype=np.float32) for part in parts]
    low, high = (float(end) for end in _range(parts))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(
            f"data: {name} holds NaN or infinite values (minimum {low:g}, maximum {high:g}); "
            "remove or replace them"
        )
    if low < 0 or high > 1:
        raise UserError(
            f"data: {name} holds floats from {low:g} to {high:g}, not in [0, 1]; {_fix(low, high)}"
        )
    return [torch.from_numpy(part) for part in parts]


def _fix(low: float, high: float) -> str:
    if low >= 0 and high <= 255:
        return "divide them by 255" if high > 2 else f"divide them by {high:g}"
    if low >= -1 and high <= 1:
        return "give (x + 1) / 2"
    return "give (x - minimum) / (maximum - minimum)"
