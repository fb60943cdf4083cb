"""Folders of images for tests that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, images: np.ndarray) -> None:
    """Write uint8 `[N, C, H, W]`, C 1 or 3, as 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
