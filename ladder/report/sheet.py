"""A sheet of images: labelled rows, drawn pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from ladder.report.canvas import DPI, new_figure, png

CELL = 112  # pixels on paper that an image's longer side should have, about 2 cm
LARGEST = 256  # pixels of an image itself; larger ones are averaged down
PAD = 4  # between images, in pixels on paper
GAP = 24  # between groups of columns


class Row(NamedTuple):
    """A row of a sheet.

    Attributes:
        label: What stands to its left.
        images: `[n, C, H, W]`, C is 1 or 3; values are clamped to [0, 1].
    """

    label: str
    images: Tensor


class Sheet(NamedTuple):
    """Rows of equally many images.

    Attributes:
        title: What stands above.
        rows: The rows.
        heads: What stands above some columns, by column.
        gaps: Columns followed by more space.
    """

    title: str
    rows: Sequence[Row]
    heads: Mapping[int, str] = {}
    gaps: Sequence[int] = ()


def drawable(shape: Sequence[int]) -> bool:
    """Whether data of this shape are grey or colour images."""
    return len(shape) == 3 and shape[0] in (1, 3)


def sheet_png(sheet: Sheet) -> bytes:
    """Draw a sheet.

    Args:
        sheet: The sheet.

    Returns:
        A PNG; every pixel of an image is a square of equal size in it.
    """
    strips = [pixels(row.images) for row in sheet.rows]
    height, width = strips[0].shape[1:3]
    lefts = _lefts(strips[0].shape[0], width, sheet.gaps)
    tops = [i * (height + PAD) for i in range(len(strips))]
    paper = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
    for top, strip in zip(tops, strips, strict=True):
        for left, image in zip(lefts, strip, strict=True):
            paper[top : top + height, left : left + width] = image
    figure = new_figure(paper.shape[1] / DPI, paper.shape[0] / DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(paper, interpolation="nearest", aspect="auto")
    axes.set_yticks([top + height / 2 for top in tops], [row.label for row in sheet.rows])
    axes.set_xticks([lefts[c] + width / 2 for c in sheet.heads], list(sheet.heads.values()))
    axes.tick_params(length=0, labelsize=10, pad=6, top=True, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(sheet.title, fontsize=12, loc="left", pad=10)
    return png(figure)


def pixels(images: Tensor) -> np.ndarray:
    """Images as they go on paper.

    Args:
        images: `[n, C, H, W]`, C is 1 or 3.

    Returns:
        uint8 `[n, s H, s W, 3]` for a whole number s, or averaged down where they are very large.
    """
    x = images.detach().float().cpu().nan_to_num(0.0).clamp(0.0, 1.0)
    longer = max(x.shape[2:])
    if longer > LARGEST:
        size = [max(1, side * LARGEST // longer) for side in x.shape[2:]]
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    scale = max(1, round(CELL / longer))
    x = repeat(x, "n c h w -> n c (h s) (w t)", s=scale, t=scale)
    bytes_ = (255.0 * x.expand(-1, 3, -1, -1)).round().to(torch.uint8)
    grid: np.ndarray = rearrange(bytes_, "n c h w -> n h w c").numpy()
    return grid


def _lefts(columns: int, width: int, gaps: Sequence[int]) -> list[int]:
    before = [sum(gap < c for gap in gaps) for c in range(columns)]
    return [c * (width + PAD) + n * (GAP - PAD) for c, n in enumerate(before)]
