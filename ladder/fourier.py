"""Convolutions by Fourier transforms, for kernels about as large as the maps they act on."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def convolve(x: Tensor, weight: Tensor, before: int) -> Tensor:
    """The convolution that keeps the resolution, as a product at each frequency.

    It is exact up to rounding. Otherwise a kernel of k x k costs k^2 products for each position,
    channel and output; here they are about 8, whatever k, and there are the transforms.

    Args:
        x: `[B, channels, H, W]`.
        weight: `[out, channels, k, k]`.
        before: Zeros that stand before each axis of x; k - 1 - before stand after it.

    Returns:
        `[B, out, H, W]`, in float32 or better, whatever autocast is on.
    """
    height, width = x.shape[2:]
    kernel = weight.shape[2]
    size = [_power_of_two(extent + kernel - 1) for extent in (height, width)]
    # The meta device, on which sizes are found out, knows no autocast.
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        kind = torch.promote_types(weight.dtype, torch.float32)
        maps = torch.fft.rfft2(x.to(kind), size)
        taps = torch.fft.rfft2(weight.to(kind), size).conj()
        # Frequencies are the batch of the products, [F, B, channels] @ [F, channels, out].
        left = maps.flatten(2).permute(2, 0, 1).contiguous()
        right = taps.flatten(2).permute(2, 1, 0).contiguous()
        product = torch.bmm(left, right).permute(1, 2, 0).unflatten(2, maps.shape[2:])
        y: Tensor = torch.fft.irfft2(product, size)
    # What wrapped around the beginning is at the end.
    return y.roll((before, before), (2, 3))[:, :, :height, :width]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
