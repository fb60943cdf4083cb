"""Convolutions whose weights are a direction and a learned norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ladder.convolutions import Conv2d

FLOOR = 1e-5  # added to the norm of a direction
START = 0.01  # added to it before the first logarithm


class WeightNormConv2d(Conv2d):
    """A convolution with the weight exp(l_o) w_o / (||w_o|| + 1e-5) of output channel o.

    It keeps the resolution, or divides it by `stride`. At first w is what torch draws for a
    convolution, and l_o = log(||w_o|| + 0.01), so the weight is nearly w.

    Args:
        channels: Of the input.
        out: Of the output.
        kernel: Height and width, odd.
        stride: Positions between two outputs.
        dilation: Positions between two taps.
        groups: Parts of the channels that do not see each other.
        bias: Whether there is one.
        mask: Multiplies w, `[out, channels / groups, kernel, kernel]`; `None` for none. It is not
            in the state dict.

    References:
        Weight Normalization (Salimans & Kingma, 2016), section 2, https://arxiv.org/abs/1602.07868
    """

    mask: Tensor | None

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        mask: Tensor | None = None,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(channels, out, kernel, stride, padding, dilation, groups, bias)
        self.register_buffer("mask", mask, persistent=False)
        self.log_norm = nn.Parameter((norms(self.direction()) + START).log())

    def direction(self) -> Tensor:
        """The direction w, masked."""
        return self.weight if self.mask is None else self.weight * self.mask

    def effective_weight(self) -> Tensor:
        """The weight that convolves, `[out, channels / groups, kernel, kernel]`."""
        w = self.direction()
        weight: Tensor = w * (self.log_norm.exp() / (norms(w) + FLOOR))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, out, H / stride, W / stride]`."""
        return self.convolve(x, self.effective_weight(), self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same convolution with another weight and bias."""
        y: Tensor = self._conv_forward(x, weight, bias)
        return y


def norms(weight: Tensor) -> Tensor:
    """Euclidean norm of what leads to each output channel, `[out, 1, 1, 1]`."""
    values: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
    return values
