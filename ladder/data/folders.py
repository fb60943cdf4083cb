"""Files of images: as one tensor, or read as needed where that would not fit."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ladder.data import memory
from ladder.data.holdout import check_enough
from ladder.data.images import resize
from ladder.data.quote import quoted
from ladder.data.rows import Data, Rows
from ladder.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
GREY_MODES = ("1", "L", "LA")
TEST_FOLDERS = ("test", "val", "valid")

Decoder = Callable[[Path], Tensor]


def load(
    folder: Path, channels: int | None = None, size: tuple[int, int] | None = None
) -> tuple[Data, Data | None]:
    """Read all images below a folder, in the order of their paths.

    Args:
        folder: With `train` and one of `test`, `val`, `valid` in it; without them, all files
            are one part.
        channels: 1 reads grey, 3 reads colour, None takes what the first file has; opacity is
            dropped, and 16 bits become 8.
        size: Height and width every image is brought to; None asks for images of one size.

    Returns:
        Training and test images, as `read` gives them; None if the folder has no test part.

    Raises:
        UserError: If there are too few images, one cannot be read, or they do not fit together.
    """
    train, test = _parts(folder)
    decoder = partial(decode, channels=channels, size=size)
    parts = read([train, test] if test else [train], decoder)
    return parts[0], parts[1] if test else None


def read(parts: Sequence[list[Path]], decoder: Decoder) -> list[Data]:
    """Read the files of a set, several at once.

    Images that would take more than half of the available memory are left in their files, and
    every batch is decoded when it is gathered; then only the first file is read here.

    Args:
        parts: The files of each part, at least one.
        decoder: Reads one file: uint8 [C, H, W].

    Returns:
        The images of each part in the order of its files, uint8 [N, C, H, W].

    Raises:
        UserError: If images do not fit together; or what `decoder` raises.
    """
    first = parts[0][0]
    like = decoder(first)
    rows = [_rows(paths, decoder, first, like) for paths in parts]
    if not memory.fits(sum(part.nbytes for part in rows)):
        return [*rows]
    return [part.read(torch.arange(len(part))) for part in rows]


def decode(path: Path, channels: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
    """Read one file.

    Args:
        path: An image, of any kind that Pillow reads.
        channels: 1 reads grey, 3 reads colour, None takes what the file has.
        size: Height and width it is brought to, if any.

    Returns:
        uint8 [C, H, W] with C 1 or 3.

    Raises:
        UserError: If it cannot be read, or is an animation.
    """
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


def _parts(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files for training, at least one; and for testing, none if the folder has no parts."""
    held_out = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        paths = _images(folder)
        check_enough(len(paths), f"data: the folder {folder} with its {_suffixes()} images")
        return paths, []
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


def _pixels(image: Image, channels: int | None) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off instead of scaling
        grey = (np.asarray(image, dtype=np.float32) / 257).round().astype(np.uint8)
        return np.repeat(grey[None], channels or 1, axis=0)
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with opacity cannot lose it directly
    grey_or_colour = {1: "L", 3: "RGB"}[channels or (1 if image.mode in GREY_MODES else 3)]
    pixels = np.array(image.convert(grey_or_colour))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _rows(paths: list[Path], decoder: Decoder, first: Path, like: Tensor) -> Rows:
    """The files as rows; a batch is decoded by several threads at once."""

    def gather(index: Tensor) -> Tensor:
        chosen = [paths[i] for i in index.tolist()]
        images = like.new_empty((len(chosen), *like.shape))
        with ThreadPoolExecutor() as pool:
            for target, path, image in zip(images, chosen, pool.map(decoder, chosen), strict=True):
                _check_alike(path, image, first, like)
                target.copy_(image)
        return images

    return Rows(gather, torch.arange(len(paths)), like.shape)


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
