"""Draws from the prior, as a grid of images or an array."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ladder.calibration import recalibrate
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.model import Temperature
from ladder.noise import seeded
from ladder.pretrained import from_pretrained
from ladder.report.sheet import Row, Sheet, drawable, sheet_png
from ladder.sampling import sample

AT_ONCE = 256  # draws that pass through the model together, and what is drawn depends on it
LONGEST = 60  # characters of a temperature in the name of a file


def read_temperature(text: str) -> Temperature:
    """Read a temperature for all priors or for some, as the command line gives it.

    Args:
        text: Such as `0.8`, or `z1=0.5,z2=0.8`.

    Returns:
        The number, or the numbers by layer name.

    Raises:
        UserError: If it is neither.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        if "=" not in text:
            return float(text)
        levels = {name.strip(): float(value) for name, _, value in pairs}
    except ValueError:
        raise UserError(
            f"--temperature {text}: give one number, or numbers by level such as z1=0.5,z2=0.8"
        ) from None
    if len(levels) < len(pairs):
        raise UserError(f"--temperature {text}: names a level twice")
    return levels


def write_samples(
    source: Path,
    n: int = 64,
    temperature: Temperature = 1.0,
    seed: int = 0,
    out: Path | None = None,
    recalibration: int | None = None,
) -> Path:
    """Draw from a trained model's prior, 256 at once, and write the means of p(x|z).

    Args:
        source: A run directory, or a folder that `save_pretrained` wrote.
        n: Number of draws.
        temperature: Multiplies the standard deviation of every prior, or by layer name of some; 0
            is deterministic.
        seed: Seed of the draws.
        out: A `.png` for a grid, a `.npy` for an array `[n, *shape]`; `None` writes
            `samples/prior-t<temperature>-seed<seed>.png` (or `.npy`) into `source`, for levels
            `samples/prior-<level>=<temperature>-...`, with `recalibrated<steps>` before the seed.
        recalibration: Steps of `recalibrate` before sampling; `None` for none.

    Returns:
        The file.

    Raises:
        UserError: If an argument is out of range, the data are no images, or nothing is there.
        WorkFailed: If a sample is not finite.
        OSError: If the file cannot be written.
    """
    model = from_pretrained(source)
    picture = drawable(model.config.shape)
    if out is None:
        fitted = "" if recalibration is None else f"recalibrated{recalibration}-"
        words = f"prior-{_in_a_name(temperature)}-{fitted}seed{seed}"
        out = source / "samples" / f"{words}{'.png' if picture else '.npy'}"
    if out.suffix not in (".png", ".npy"):
        raise UserError(f"{out}: write to a .png (a grid) or a .npy (an array)")
    if out.suffix == ".png" and not picture:
        raise UserError(f"{out}: data of shape {model.config.shape} are no images; write a .npy")
    if recalibration is not None:
        model = recalibrate(model, temperature, steps=recalibration, seed=seed)
    with seeded(seed):
        mean = torch.cat(
            [
                sample(model, min(AT_ONCE, n - done), temperature).mean
                for done in range(0, max(n, 1), AT_ONCE)
            ]
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, _grid(mean, temperature) if out.suffix == ".png" else _array(mean))
    return out


def _in_a_name(temperature: Temperature) -> str:
    if not isinstance(temperature, Mapping):
        return f"t{float(temperature):g}"
    text = _by_level(temperature, "-")
    return text if len(text) <= LONGEST else f"levels-{zlib.crc32(text.encode()):08x}"


def _by_level(temperature: Mapping[str, float | Tensor], comma: str) -> str:
    return comma.join(f"{name}={float(t):g}" for name, t in temperature.items())


def _in_words(temperature: Temperature) -> str:
    if not isinstance(temperature, Mapping):
        return f"temperature {float(temperature):g}"
    text = _by_level(temperature, ", ")
    some = f"{text[:LONGEST].rpartition(',')[0]}, …"
    return f"temperature {text if len(text) <= LONGEST else some}, else 1"


def _grid(images: Tensor, temperature: Temperature) -> bytes:
    columns = math.ceil(math.sqrt(len(images)))
    padded = images.new_ones(columns * math.ceil(len(images) / columns), *images.shape[1:])
    padded[: len(images)] = images
    rows = [Row("", row) for row in padded.split(columns)]
    title = f"{len(images)} draws from the prior, {_in_words(temperature)}"
    return sheet_png(Sheet(title, rows))


def _array(images: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, images.numpy())
    return buffer.getvalue()
