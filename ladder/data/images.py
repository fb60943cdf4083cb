"""Size and colour of whole sets of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Images turned into floats at once: a set of bytes may fill the memory, its floats would not fit.
CHUNK = 1024

# Rec. 601, which image decoders use as well.
LUMA = (0.299, 0.587, 0.114)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly, averaging over what falls into a pixel when it shrinks.

    Args:
        images: uint8 or float32 [N, C, H, W].
        size: New height and width.

    Returns:
        [N, C, *size] of the same dtype, bytes rounded to the nearest; `images` itself where the
        size is right.
    """
    if tuple(images.shape[-2:]) == size:
        return images

    def bilinear(x: Tensor) -> Tensor:
        # Antialiasing widens the filter only along an axis that shrinks.
        return F.interpolate(x, size=size, mode="bilinear", antialias=True)

    return _in_floats(images, bilinear, (images.shape[1], *size))


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Turn grey into colour or colour into grey.

    Args:
        images: uint8 or float32 [N, C, H, W]; C is 1 or 3, or 2 or 4 with a last channel of
            opacity, which is dropped.
        channels: 1 or 3.

    Returns:
        [N, channels, H, W] of the same dtype; `images` itself where the channels are right.
    """
    if images.shape[1] == channels:
        return images
    opaque = images[:, :-1] if images.shape[1] in (2, 4) else images
    if opaque.shape[1] == channels:
        return opaque.contiguous()
    if channels == 3:
        return opaque.repeat(1, 3, 1, 1)
    weights = torch.tensor(LUMA).view(1, 3, 1, 1)
    return _in_floats(opaque, lambda x: (x * weights).sum(1, True), (1, *images.shape[2:]))


def _in_floats(
    images: Tensor, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Apply `change` to floats in chunks; shape is that of one changed image."""
    changed = images.new_empty((len(images), *shape))
    for source, target in zip(images.split(CHUNK), changed.split(CHUNK), strict=True):
        x = change(source.to(torch.float32))
        # Rounding errors of the weights must not leave the range.
        target.copy_(x.round().clamp(0, 255) if images.dtype == torch.uint8 else x.clamp(0, 1))
    return changed
