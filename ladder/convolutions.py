"""2D convolutions as CPUs compute them fastest, chosen by shape and layout alone.

* 1x1 over maps that lie in memory with their channels last: one matrix product, whose gradients
  are matrix products too.
* Depthwise: the gradient of the weight is itself a depthwise convolution, of the maps with the
  gradients as kernels. What oneDNN has for it takes ten times as long and more.
* All others, and all on other devices: torch's own.

Numbers are those of `torch.nn.functional.conv2d` up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 64  # height or width of maps that are good kernels


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` by way of `convolve`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.padding, str) or self.padding_mode != "zeros":
            y: Tensor = super()._conv_forward(input, weight, bias)
            return y
        stride, padding, dilation = _pair(self.stride), _pair(self.padding), _pair(self.dilation)
        return convolve(input, weight, bias, stride, padding, dilation, self.groups)


Pair = tuple[int, int]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The same as `torch.nn.functional.conv2d`.

    Args:
        x: `[B, channels, H, W]`.
        weight: `[out, channels / groups, height, width]`.
        bias: `[out]`, or `None`.
        stride: Positions between two outputs, by axis.
        padding: Zeros on either side, by axis.
        dilation: Positions between two taps, by axis.
        groups: Parts of the channels that do not see each other.

    Returns:
        `[B, out, H', W']`.
    """
    if x.device.type == "cpu" and x.ndim == 4 and stride == (1, 1):
        if weight.shape[2:] == (1, 1) and padding == (0, 0) and groups == 1 and _last(x):
            return _pointwise(x, weight, bias)
        if 1 < groups == x.shape[1] == weight.shape[0] and _recorded(weight) and _small(x):
            return _depthwise(x, weight, bias, padding, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _recorded(weight: Tensor) -> bool:
    return torch.is_grad_enabled() and weight.requires_grad


def _small(x: Tensor) -> bool:
    return max(x.shape[2:]) <= LARGEST


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair
) -> Tensor:
    # As F.conv2d would, but before the function, whose gradients must be of the same kind.
    x, weight = _cast(x), _cast(weight)
    bias = None if bias is None else _cast(bias)
    y: Tensor = _Depthwise.apply(x, weight, padding, dilation)
    return y if bias is None else y + bias[:, None, None]


def _cast(values: Tensor) -> Tensor:
    """What autocast, if it is on, makes of values that a convolution reads."""
    if values.dtype != torch.float32 or not torch.is_autocast_enabled("cpu"):
        return values
    return values.to(torch.get_autocast_dtype("cpu"))


class _Depthwise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> Tensor:
        return F.conv2d(x, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                (1, 1),
                ctx.padding,
                ctx.dilation,
                False,
                (0, 0),
                len(weight),
                (True, False, False),
            )[0]
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(x, gradient, ctx.padding, ctx.dilation)
        return of_x, of_weight, None, None


def _of_weight(x: Tensor, gradient: Tensor, padding: Pair, dilation: Pair) -> Tensor:
    """Each map of x, `[B, C, H, W]`, convolved by its own gradient: `[C, 1, height, width]`."""
    batch, channels = x.shape[:2]
    maps = x.reshape(1, batch * channels, *x.shape[2:])
    kernels = gradient.reshape(batch * channels, 1, *gradient.shape[2:])
    # Taps stand `dilation` apart: that is the stride between two of the outputs here.
    taps = F.conv2d(maps, kernels, None, dilation, padding, 1, batch * channels)
    sums: Tensor = taps.unflatten(1, (batch, channels)).sum((0, 1))
    return sums.unsqueeze(1)
