"""Draws from the prior, as a grid of images or an array."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from torch import Tensor

from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.pretrained import from_pretrained
from ladder.report.sheet import Row, Sheet, drawable, sheet_png
from ladder.sampling import sample


def write_samples(
    source: Path, n: int = 64, temperature: float = 1.0, seed: int = 0, out: Path | None = None
) -> Path:
    """Draw from a trained model's prior and write the means of p(x|z).

    Args:
        source: A run directory, or a folder that `save_pretrained` wrote.
        n: Number of draws.
        temperature: Multiplies the standard deviation of every prior; 0 is deterministic.
        seed: Seed of the draws.
        out: A `.png` for a grid, a `.npy` for an array `[n, *shape]`; `None` writes
            `samples/prior-t<temperature>-seed<seed>.png` (or `.npy`) into `source`.

    Returns:
        The file.

    Raises:
        UserError: If an argument is out of range, the data are no images, or nothing is there.
        OSError: If the file cannot be written.
    """
    if n < 1 or not temperature >= 0:
        raise UserError("sample: n must be at least 1 and the temperature at least 0")
    model = from_pretrained(source)
    picture = drawable(model.config.shape)
    if out is None:
        name = f"prior-t{temperature:g}-seed{seed}{'.png' if picture else '.npy'}"
        out = source / "samples" / name
    if out.suffix not in (".png", ".npy"):
        raise UserError(f"{out}: write to a .png (a grid) or a .npy (an array)")
    if out.suffix == ".png" and not picture:
        raise UserError(f"{out}: data of shape {model.config.shape} are no images; write a .npy")
    mean = sample(model, n, temperature, seed).mean
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, _grid(mean, temperature) if out.suffix == ".png" else _array(mean))
    return out


def _grid(images: Tensor, temperature: float) -> bytes:
    columns = math.ceil(math.sqrt(len(images)))
    padded = images.new_ones(columns * math.ceil(len(images) / columns), *images.shape[1:])
    padded[: len(images)] = images
    rows = [Row("", row) for row in padded.split(columns)]
    return sheet_png(
        Sheet(f"{len(images)} draws from the prior, temperature {temperature:g}", rows)
    )


def _array(images: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, images.numpy())
    return buffer.getvalue()
