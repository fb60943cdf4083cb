"""Dense layers and convolutions with the weight g v / ||v|| (Salimans & Kingma 2016, section 2).

At first v is N(0, 0.05^2), g 1 and the bias 0; `initialise` then sets g and the bias by a layer's
own outputs, once. Convolutions put zeros around maps as TensorFlow's SAME does, half before and
the odd one after, for maps whose extent is a multiple of the stride.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder import fourier
from ladder.convolutions import convolve

SPREAD = 0.05  # of v
WORTH = 1024  # data times taps; about where both ways take as long (benchmarks/fourier.py)


class Normed(nn.Module):
    """Direction v, norm g, bias, and whether they were set by data.

    Args:
        shape: Of v.
        out_axis: Axis of v that counts output channels.
    """

    initialised: Tensor

    def __init__(self, shape: tuple[int, ...], out_axis: int = 0) -> None:
        super().__init__()
        self.axes = [axis for axis in range(len(shape)) if axis != out_axis]
        self.v = nn.Parameter(nn.init.normal_(torch.empty(shape), std=SPREAD))
        self.g = nn.Parameter(torch.ones([n if i == out_axis else 1 for i, n in enumerate(shape)]))
        self.bias = nn.Parameter(torch.zeros(shape[out_axis]))
        self.register_buffer("initialised", torch.tensor(False))

    def weight(self) -> Tensor:
        """The weight that acts, shaped like v."""
        norm = torch.linalg.vector_norm(self.v, dim=self.axes, keepdim=True)
        weight: Tensor = self.v * (self.g / norm)
        return weight


class Dense(Normed):
    """`[B, ...]`, flattened, to `[B, out]`."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__((out, width))

    def forward(self, x: Tensor) -> Tensor:
        """Flatten and map."""
        return F.linear(x.flatten(1), self.weight(), self.bias)


class Conv(Normed):
    """A convolution that keeps the resolution, or divides it by `stride`.

    Args:
        channels: Of the input.
        out: Of the output.
        kernel: Height and width, at least the stride, or 1.
        stride: Positions between two outputs.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__((out, channels, kernel, kernel))
        self.kernel, self.stride = kernel, stride
        before, after = margins(kernel, stride)
        self.even = before == after
        self.around = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, out, H / stride, W / stride]`."""
        if self.by_fourier(x):
            return fourier.convolve(x, self.weight(), self.around[0]) + self.bias[:, None, None]
        if self.even:
            before = self.around[0]
            stride, padding = (self.stride, self.stride), (before, before)
            return convolve(x, self.weight(), self.bias, stride, padding)
        return F.conv2d(F.pad(x, self.around), self.weight(), self.bias, self.stride)

    def by_fourier(self, x: Tensor) -> bool:
        """Whether for so many data that makes up for the transform of the weight, or nearly."""
        # On CPUs only, where `WORTH` was measured; meta tensors count what a CPU would do.
        there = x.device.type in ("cpu", "meta")
        large = self.kernel >= 8 and x.shape[0] * self.kernel**2 >= WORTH
        return there and self.stride == 1 and large


class ConvUp(Normed):
    """A transposed convolution that multiplies the resolution by `stride`.

    Args:
        channels: Of the input.
        out: Of the output.
        kernel: Height and width, at least the stride.
        stride: Positions between what two inputs add to.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__((channels, out, kernel, kernel), out_axis=1)
        self.stride = stride
        self.before, self.after = margins(kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, out, stride H, stride W]`."""
        y = F.conv_transpose2d(x, self.weight(), self.bias, self.stride, padding=self.before)
        odd = self.after - self.before
        return y[:, :, : y.shape[2] - odd, : y.shape[3] - odd] if odd else y

    def whole(self, x: Tensor) -> Tensor:
        """The same with what is cut off around it."""
        return F.conv_transpose2d(x, self.weight(), self.bias, self.stride)


def margins(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a map, or what a transposed convolution cuts off there."""
    total = max(0, kernel - stride)
    return total // 2, total - total // 2


def features(size: int, width: int, space: list[int]) -> nn.Sequential:
    """`[B, size]` to a map `[B, width, *space]`."""
    dense = Dense(size, width * math.prod(space))
    return nn.Sequential(dense, nn.Unflatten(1, (width, *space)))
