"""A folder of images as one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .holdout import training_rows
from .images import resize, with_channels
from .quote import quoted
from .torchvision_import import torchvision

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TEST_FOLDERS = ("test", "val", "valid")


def load(
    folder: Path, channels: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Read all images below a folder, in the order of their paths.

    Args:
        folder: With `train` and one of `test`, `val`, `valid` in it; without them, the last
            tenth of all files (at least one) is for testing.
        channels: 1 reads grey, 3 reads colour, None takes what the first file has; opacity is
            dropped.
        size: Height and width every image is brought to; None asks for images of one size.

    Returns:
        Training and test images, each uint8 [N, C, H, W].

    Raises:
        UserError: If there are too few images, one cannot be read, or they do not fit together.
    """
    train, test = _parts(folder)
    read = partial(_read, torchvision("io"), channels=channels, size=size)
    first = train[0]
    like = read(first)
    return _stack(train, read, first, like), _stack(test, read, first, like)


def _parts(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files for training and for testing, at least one each."""
    held_out = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        paths = _images(folder)
        n = training_rows(len(paths), f"data: the folder {folder} with its {_suffixes()} images")
        return paths[:n], paths[n:]
    train, test = _images(folder / "train"), _images(held_out)
    for part, paths in ((folder / "train", train), (held_out, test)):
        if not paths:
            raise UserError(f"data: the folder {part} holds no images; put {_suffixes()} there")
    return train, test


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _images(folder: Path) -> list[Path]:
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    # Names that begin with a dot are left behind by file managers and hold no images.
    seen = (p for p in paths if not p.name.startswith("."))
    return sorted(seen, key=lambda p: p.relative_to(folder).parts)


def _read(io: Any, path: Path, channels: int | None, size: tuple[int, int] | None) -> Tensor:
    """Decode one file: uint8 [C, H, W] with C 1 or 3."""
    mode = {None: io.ImageReadMode.UNCHANGED, 1: io.ImageReadMode.GRAY, 3: io.ImageReadMode.RGB}
    try:
        image = io.decode_image(io.read_file(str(path)), mode[channels])
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"data: {path} cannot be read as an image ({quoted(error)}); replace or remove it"
        ) from error
    if image.ndim != 3:
        raise UserError(f"data: {path} is an animation; replace it by a single image")
    if image.dtype != torch.uint8:
        image = (image.to(torch.float32) / 257).round().to(torch.uint8)  # 65535 = 257 * 255
    image = with_channels(image[None], 1 if len(image) < 3 else 3)
    return (image if size is None else resize(image, size))[0]


def _stack(paths: list[Path], read: Any, first: Path, like: Tensor) -> Tensor:
    images = like.new_empty((len(paths), *like.shape))
    with ThreadPoolExecutor() as pool:
        decoded: Iterable[Tensor] = pool.map(read, paths)
        for target, path, image in zip(images, paths, decoded, strict=True):
            _check_alike(path, image, first, like)
            target.copy_(image)
    return images


def _check_alike(path: Path, image: Tensor, first: Path, like: Tensor) -> None:
    if len(image) != len(like):
        raise UserError(
            f"data: {path} has {_channels(image)} but {first} has {_channels(like)}; "
            "give data.channels=1 for grey or data.channels=3 for colour"
        )
    if image.shape != like.shape:
        height, width = like.shape[1:]
        raise UserError(
            f"data: {path} is {image.shape[1]} x {image.shape[2]} (height x width) but {first} is "
            f"{height} x {width}; give a size for all, such as data.resize=[{height},{width}]"
        )


def _channels(image: Tensor) -> str:
    return "1 channel" if len(image) == 1 else f"{len(image)} channels"
