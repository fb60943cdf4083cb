"""From a name to the three parts of a set, prepared and checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ladder.config import DataConfig
from ladder.data import arrays, celeba, digits, folders, imagenet, memory, torchvision_sets
from ladder.data.batches import binarize, take
from ladder.data.holdout import hold_out, shuffled, with_test
from ladder.data.images import CHUNK, resize, with_channels
from ladder.data.rows import Data, Rows
from ladder.errors import UserError, suggest

MOST_CHANNELS = 4  # red, green, blue and opacity; what has more has no colours

HELD_OUT = 0  # seed of the draws of held-out data: the same for every run, so that runs compare
BINARISATION = 1  # tells this noise from that of training steps

Binarize = Literal["none", "static", "dynamic"]

NAMES = ("digits", *torchvision_sets.CLASSES, *imagenet.SIDES, celeba.NAME)


class Splits(NamedTuple):
    """A set in three parts; all have the same shape and dtype.

    Values are uint8, or float32 in [0, 1] where the source held floats; `batches.take` gives
    floats in [0, 1] for both. What is too large for the memory is `Rows`, read as it is taken.
    """

    name: str
    """The name of the set, folder or file."""
    train: Data
    """What is trained on, [N, *shape]."""
    validation: Data
    """Held out from one end of the training data, [N, *shape]; N may be 0."""
    test: Data
    """[N, *shape]."""


class Misfit(UserError):
    """Data have another shape than the model.

    Args:
        name: The set.
        found: Shape of its data.
        shape: Shape of the model's.

    Attributes:
        misfit: What is wrong.
        fix: Settings that would bring the data to the model; empty if there are none.
    """

    def __init__(self, name: str, found: list[int], shape: list[int]) -> None:
        self.misfit = (
            f"'{name}' holds data of shape {_list(found)}, but model.shape is {_list(shape)}"
        )
        self.fix = _fix(found, shape)
        other = f"{self.fix}, or " if self.fix else ""
        super().__init__(f"data: {self.misfit}; give {other}model.shape={_list(found)}")


def load(config: DataConfig, shape: Sequence[int], seed: int = 0) -> Splits:
    """Find a set and prepare it for a model.

    In this order: the shuffle, the test data of a source that names none, the validation data,
    the binarisation. So which data a part holds does not depend on the seed of a run.

    Binarisation `static` draws every part once; `dynamic` draws validation and test once, so
    that evaluations agree, and leaves the training data grey for a draw in every batch.

    Args:
        config: Which data, and how they are prepared.
        shape: Shape of one datum of the model.
        seed: Seed of the binarisation that is drawn once.

    Returns:
        The parts, each [N, *shape].

    Raises:
        UserError: If there is no such set, it cannot be read, or it does not fit the model.
    """
    name = config.name if config.name in NAMES else Path(config.name).name
    size = _size(config, shape)
    train, test = _read(config, shape, size)
    if config.shuffle is not None:
        train = shuffled(train, config.shuffle)
    train, test = (_shaped(p, config.channels, size) for p in with_test(train, test))
    _check(name, train, test, shape)
    if config.flip and len(shape) != 3:
        raise UserError(f"data.flip: data of shape {_list(shape)} are not images; leave it out")
    train, validation = hold_out(train, config.validation, config.hold_out)
    return drawn(Splits(name, train, validation, test), config.binarize, seed)


def drawn(grey: Splits, binarize: Binarize, seed: int = 0) -> Splits:
    """Binarise a set that was loaded with `binarize` none.

    Args:
        grey: The parts.
        binarize: As in `DataConfig`.
        seed: Of the training data, where they are drawn once.

    Returns:
        The parts as `load` gives them.
    """
    train, validation, test = grey.train, grey.validation, as_test(grey.test, binarize)
    if binarize == "static":
        train = _drawn(train, seed, part=0)
    if binarize != "none":
        validation = _drawn(validation, HELD_OUT, 1)
    return Splits(grey.name, train, validation, test)


def as_test(images: Data, binarize: Binarize) -> Data:
    """Binarise any data as those of a test split: once, with the same noise in every run."""
    return images if binarize == "none" else _drawn(images, HELD_OUT, 2)


def _read(
    config: DataConfig, shape: Sequence[int], size: tuple[int, int] | None
) -> tuple[Data, Data | None]:
    """Training and test data; None where the source does not name those."""
    if config.name == "digits":
        return digits.load()
    if config.name in torchvision_sets.CLASSES:
        return torchvision_sets.load(config.name, config.root)
    if config.name in imagenet.SIDES:
        return imagenet.load(config.name, config.root)
    if config.name == celeba.NAME:
        return celeba.load(config.root)
    path = Path(config.name).expanduser()
    if path.is_dir():
        return folders.load(path, config.channels, size)
    if path.suffix.lower() in (".npy", ".npz"):
        return arrays.load(path, shape)
    raise UserError(
        f"data.name: there is no set or folder '{config.name}' (a folder of images or a .npy or "
        f".npz file would do too){suggest(config.name, NAMES)}"
    )


def _size(config: DataConfig, shape: Sequence[int]) -> tuple[int, int] | None:
    """Height and width that images are brought to, if any."""
    if isinstance(config.resize, int):
        return config.resize, config.resize
    if config.resize is not None:
        return config.resize[0], config.resize[1]
    # The digits stand in for any set, so they come in any size.
    return (shape[1], shape[2]) if config.name == "digits" and len(shape) == 3 else None


def _shaped(images: Data, channels: int | None, size: tuple[int, int] | None) -> Data:
    if images.ndim != 4:
        if channels is not None or size is not None:
            raise UserError(
                f"data.{'resize' if channels is None else 'channels'}: data of shape "
                f"{_list(images.shape[1:])} are not images; leave it out"
            )
        return images
    if isinstance(images, Rows):
        return images.map(lambda batch: _resized(batch, channels, size))
    return _resized(images, channels, size)


def _resized(images: Tensor, channels: int | None, size: tuple[int, int] | None) -> Tensor:
    if channels is not None and images.shape[1] <= MOST_CHANNELS:
        images = with_channels(images, channels)
    return images if size is None else resize(images, size)


def _check(name: str, train: Data, test: Data, shape: Sequence[int]) -> None:
    for part, images in (("train", train), ("test", test)):
        if images.numel() == 0:
            raise UserError(f"data: the {part} part of '{name}' is empty; put data there")
    found = list(train.shape[1:])
    if found != list(shape):
        raise Misfit(name, found, list(shape))


def _fix(found: list[int], shape: list[int]) -> str:
    """The settings that would bring the data to the model, or nothing if there are none."""
    if len(found) != 3 or len(shape) != 3:
        return ""
    if found[0] != shape[0] and (found[0] > MOST_CHANNELS or shape[0] not in (1, 3)):
        return ""
    settings = []
    if found[0] != shape[0]:
        settings.append(f"data.channels={shape[0]}")
    if found[1:] != shape[1:]:
        settings.append(f"data.resize={_list(shape[1:])}")
    return " and ".join(settings)


def _list(shape: Sequence[int]) -> str:
    """As it would be written on the command line."""
    return f"[{','.join(map(str, shape))}]"


def _drawn(images: Data, seed: int, part: int) -> Tensor:
    """Binarise once: 0 and the largest value, in the dtype of the images."""
    if isinstance(images, Rows) and not memory.fits(images.nbytes):
        raise UserError(
            f"data.binarize: {len(images)} data of shape {_list(images.shape[1:])} are too many "
            "for the memory, so they are read batch by batch and cannot be drawn once; "
            "give data.binarize=none, or fewer or smaller data"
        )
    state = np.random.SeedSequence([seed, part, BINARISATION]).generate_state(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    one = 255 if images.dtype == torch.uint8 else 1
    drawn = torch.empty(images.shape, dtype=images.dtype)
    for rows in torch.arange(len(images)).split(CHUNK):
        zeros_and_ones = binarize(take(images, rows, torch.device("cpu")), generator)
        drawn[rows] = zeros_and_ones.mul_(one).to(images.dtype)
    return drawn
