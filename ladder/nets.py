"""Networks of declared hierarchies: dense layers, residual convolutions, changes of resolution.

Convolutions work on data with one, two or three space axes; only their dimension differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.convolutions import Conv2d

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
CONVOLUTIONS: list[type[nn.Module]] = [nn.Conv1d, Conv2d, nn.Conv3d]
TRANSPOSED: list[type[nn.Module]] = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def mlp(width: int, hidden: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """Dense layers of the widths in `hidden`, each followed by the activation.

    Args:
        width: Width of the input.
        hidden: Widths of the layers; an empty list is the identity.
        activation: A key of `ACTIVATIONS`.

    Returns:
        A module `[B, width] -> [B, hidden[-1]]`.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([width, *hidden]):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def convolution(channels: int, out: int, axes: int, kernel: int = 3) -> nn.Module:
    """A convolution that keeps the resolution, for data with so many space axes."""
    return CONVOLUTIONS[axes - 1](channels, out, kernel, padding=kernel // 2)


def shrink(channels: int, out: int, factors: Sequence[int]) -> nn.Module:
    """A convolution over patches that do not overlap: each axis divided by its factor.

    Args:
        channels: Channels of the input.
        out: Channels of the output.
        factors: Size of a patch by axis; all 1 is a 3-wide convolution at the same resolution.
    """
    if math.prod(factors) == 1:
        return convolution(channels, out, len(factors))
    kernel = tuple(factors)
    return CONVOLUTIONS[len(factors) - 1](channels, out, kernel, stride=kernel)


def grow(channels: int, out: int, factors: Sequence[int]) -> nn.Module:
    """The adjoint of `shrink`: every position becomes a patch with weights of its own.

    Args:
        channels: Channels of the input.
        out: Channels of the output.
        factors: Size of a patch by axis; all 1 with equal channels is the identity.
    """
    if math.prod(factors) == 1:
        return nn.Identity() if channels == out else convolution(channels, out, len(factors), 1)
    kernel = tuple(factors)
    return TRANSPOSED[len(factors) - 1](channels, out, kernel, stride=kernel)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))).

    Args:
        width: Channels.
        axes: Space axes of the data.
        activation: A key of `ACTIVATIONS`.
        gain: Factor on the initial weights of the last convolution; 1/sqrt(N) with N blocks on
            the path keeps the variance of the sum from growing with depth (Child 2021).
    """

    def __init__(self, width: int, axes: int, activation: str, gain: float = 1.0) -> None:
        super().__init__()
        self.first = convolution(width, width, axes)
        self.last = scaled(convolution(width, width, axes), gain)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, *space]` to the same shape."""
        h: Tensor = self.last(self.activation(self.first(self.activation(x))))
        return x + h


def blocks(n: int, width: int, axes: int, activation: str, gain: float) -> list[nn.Module]:
    """So many residual blocks in a row."""
    return [ResidualBlock(width, axes, activation, gain) for _ in range(n)]


@torch.no_grad()
def scaled(module: nn.Module, gain: float) -> nn.Module:
    """Multiply a module's initial weights, not its bias, by `gain`; return the module."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.mul_(gain)
    return module


class Pad(nn.Module):
    """Zeros around the data, half before and the rest after, up to a size.

    Args:
        size: Extent of each space axis before.
        padded: Extent of each space axis after.
    """

    def __init__(self, size: Sequence[int], padded: Sequence[int]) -> None:
        super().__init__()
        missing = [b - a for a, b in zip(size, padded, strict=True)]
        margins = [(n // 2, n - n // 2) for n in missing]
        # F.pad counts from the last axis.
        self.margins = [side for pair in reversed(margins) for side in pair]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, *size]` to `[B, C, *padded]`."""
        return F.pad(x, self.margins)


class Crop(nn.Module):
    """Undo `Pad`.

    Args:
        size: Extent of each space axis after.
        padded: Extent of each space axis before.
    """

    def __init__(self, size: Sequence[int], padded: Sequence[int]) -> None:
        super().__init__()
        self.window = [((b - a) // 2, a) for a, b in zip(size, padded, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, *padded]` to `[B, C, *size]`."""
        for axis, (start, length) in enumerate(self.window, start=2):
            x = x.narrow(axis, start, length)
        return x
