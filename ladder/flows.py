"""Autoregressive flows for posteriors: masked convolutions that shift z and keep its volume.

The order of the elements of z is that of reading: row by row, in a row position by position, at a
position channel by channel. A mirrored cell reads the rows and positions backwards.

References:
    Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
    https://arxiv.org/abs/1606.04934; its cells as NVAE (Vahdat & Kautz, 2020) has them,
    https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.distributions import Flowed, Normal
from ladder.weightnorm import WeightNormConv2d

WIDTH = 6  # hidden channels of a cell for each channel of z
FIRST = 0.1  # factor on a cell's initial shifts


class Shift(nn.Module):
    """z - m(z), where m at an element sees only the elements before it: log |det| = 0.

    Args:
        channels: C of z.
        mirror: Whether the order is that of reading backwards, but for the channels.
    """

    def __init__(self, channels: int, mirror: bool = False) -> None:
        super().__init__()
        hidden = WIDTH * channels
        self.wide = masked(channels, hidden, 3, strict=True, mirror=mirror)
        self.deep = masked(hidden, hidden, 5, strict=False, mirror=mirror, depthwise=True)
        self.narrow = masked(hidden, channels, 1, strict=False, mirror=mirror)
        with torch.no_grad():
            self.narrow.log_norm.add_(math.log(FIRST))

    def forward(self, z: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        h = F.elu(self.deep(F.elu(self.wide(z))))
        shift: Tensor = self.narrow(F.elu(h))  # twice, as published
        return z - shift


class ShiftFlow(nn.Module):
    """Pairs of shifts, the second of each in the mirrored order; the volume stays.

    Args:
        channels: C of z.
        pairs: How many.
    """

    def __init__(self, channels: int, pairs: int) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(
            nn.Sequential(Shift(channels), Shift(channels, mirror=True)) for _ in range(pairs)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        for pair in self.pairs:
            z = pair(z)
        return z


class FlowMerge(nn.Module):
    """A merge whose posterior is drawn here, and the draw moved by a flow that keeps the volume.

    Args:
        merge: `(h, evidence, p) -> Normal`.
        flow: z of that Gaussian to z, `[B, C, H, W]`, with log |det| = 0.
    """

    def __init__(self, merge: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.merge = merge
        self.flow = flow

    def forward(self, h: Any, evidence: Any, p: Normal) -> Flowed:
        """Return the posterior with its draw."""
        q: Normal = self.merge(h, evidence, p)
        z0 = q.rsample()
        z = self.flow(z0).to(z0.dtype)
        # log q(z) = log q0(z0) is the density at z of q0 moved as far as z0 was.
        return Flowed(Normal(q.mean + (z - z0), q.log_scale), z)


def masked(
    channels: int,
    out: int,
    kernel: int,
    *,
    strict: bool,
    mirror: bool,
    depthwise: bool = False,
) -> WeightNormConv2d:
    """A convolution that sees only what comes before each element, or with it.

    Args:
        channels: Of the input; divides `out`, or is divided by it.
        out: Of the output.
        kernel: Height and width, odd.
        strict: Whether an element does not see itself; such convolutions, and those that keep all
            channels apart, have no bias.
        mirror: Whether the order is that of reading backwards, but for the channels.
        depthwise: Whether every channel is seen by itself alone.

    Returns:
        The convolution; of more channels than z has, each block of `channels / C` counts as one.
    """
    mask = torch.zeros(out, 1 if depthwise else channels, kernel, kernel)
    middle = kernel // 2
    mask[:, :, :middle] = 1.0
    mask[:, :, middle, :middle] = 1.0
    mask[:, :, middle, middle] = 1.0 if depthwise else _blocks(channels, out, strict)
    if mirror:
        mask = mask.flip(2, 3)
    groups = channels if depthwise else 1
    bias = not (strict or depthwise)
    return WeightNormConv2d(channels, out, kernel, groups=groups, bias=bias, mask=mask)


def _blocks(channels: int, out: int, strict: bool) -> Tensor:
    """Which channels of one position see which, `[out, channels]`."""
    fewest = min(channels, out)
    seen = torch.arange(channels) // (channels // fewest)
    sees = torch.arange(out) // (out // fewest)
    return (seen < sees[:, None]).float() if strict else (seen <= sees[:, None]).float()
