"""A folder of images as one tensor."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ladder.data.holdout import training_rows
from ladder.data.images import resize
from ladder.data.quote import quoted
from ladder.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
GREY_MODES = ("1", "L", "LA")
TEST_FOLDERS = ("test", "val", "valid")


def load(
    folder: Path, channels: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Read all images below a folder, in the order of their paths.

    Args:
        folder: With `train` and one of `test`, `val`, `valid` in it; without them, the last
            tenth of all files (at least one) is for testing.
        channels: 1 reads grey, 3 reads colour, None takes what the first file has; opacity is
            dropped, and 16 bits become 8.
        size: Height and width every image is brought to; None asks for images of one size.

    Returns:
        Training and test images, each uint8 [N, C, H, W].

    Raises:
        UserError: If there are too few images, one cannot be read, or they do not fit together.
    """
    train, test = _parts(folder)
    read = partial(_read, channels=channels, size=size)
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


def _read(path: Path, channels: int | None, size: tuple[int, int] | None) -> Tensor:
    """Decode one file: uint8 [C, H, W] with C 1 or 3."""
    # Pillow, because torchvision's decoders are deprecated; here, because little else needs it.
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if getattr(image, "is_animated", False):
                raise UserError(f"data: {path} is an animation; replace it by a single image")
            pixels = _pixels(ImageOps.exif_transpose(image), channels)
    except (OSError, SyntaxError, struct.error) as error:  # Pillow's words for a broken file
        raise UserError(
            f"data: {path} cannot be read as an image ({quoted(error)}); replace or remove it"
        ) from error
    decoded = torch.from_numpy(pixels)
    return decoded if size is None else resize(decoded[None], size)[0]


def _pixels(image: Image, channels: int | None) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off instead of scaling
        grey = (np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8)
        return np.repeat(grey[None], channels or 1, axis=0)
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with opacity cannot lose it directly
    grey_or_colour = {1: "L", 3: "RGB"}[channels or (1 if image.mode in GREY_MODES else 3)]
    pixels = np.array(image.convert(grey_or_colour))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
