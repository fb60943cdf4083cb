"""Cells of NVAE: skip(x) + 0.1 gate(f(x)), f of one or two parts.

Published models have `Residual` twice in the encoder, `Inverted` in the decoder. `CELLS` names all
arrangements of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.batchnorm import BatchNorm2d
from ladder.convolutions import Conv2d
from ladder.distributions import at_least_float32
from ladder.weightnorm import WeightNormConv2d

Resample = Literal["none", "down", "up"]

MOMENTUM = 0.05  # of batch norm's running statistics
SHARE = 0.1  # of what a cell adds
FEWEST = 4  # channels inside a gate


def norm(channels: int) -> BatchNorm2d:
    """Batch norm as every cell has it."""
    return BatchNorm2d(channels, MOMENTUM)


def doubled(x: Tensor) -> Tensor:
    """Every position four times, `[B, C, H, W]` to `[B, C, 2H, 2W]`."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Residual(nn.Module):
    """Batch norm, activation, 3x3 convolution.

    Args:
        channels: Of the input.
        out: Of the output.
        resample: `down` halves the resolution with the convolution, `up` doubles it before.
        activation: The nonlinearity.
        normalise: Whether there is batch norm.
        dilation: Positions between two taps of the convolution.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        resample: Resample = "none",
        activation: type[nn.Module] = nn.SiLU,
        normalise: bool = True,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.norm = norm(channels) if normalise else nn.Identity()
        self.activation = activation()
        stride = 2 if resample == "down" else 1
        self.conv = WeightNormConv2d(channels, out, 3, stride, dilation)
        self.up = resample == "up"

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, out, H', W']`."""
        x = self.activation(self.norm(x))
        y: Tensor = self.conv(doubled(x) if self.up else x)
        return y


class Inverted(nn.Module):
    """An inverted residual: wider, a convolution by groups of channels, and narrow again.

    Args:
        channels: Of the input.
        out: Of the output.
        resample: `down` halves the resolution with the middle convolution, `up` doubles it first.
        expand: Channels inside over those of the input.
        kernel: Height and width of the middle convolution.
        groups: Parts of its channels that do not see each other; 0 keeps all apart.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        resample: Resample = "none",
        expand: int = 6,
        kernel: int = 5,
        groups: int = 0,
    ) -> None:
        super().__init__()
        inner = expand * channels
        stride = 2 if resample == "down" else 1
        middle = partial(Conv2d, stride=stride, padding=kernel // 2, groups=groups or inner)
        self.norm_in = norm(channels)
        self.expand = Conv2d(channels, inner, 1, bias=False)
        self.norm_wide = norm(inner)
        self.middle = middle(inner, inner, kernel, bias=False)
        self.norm_deep = norm(inner)
        self.project = Conv2d(inner, out, 1, bias=False)
        self.norm_out = norm(out)
        self.up = resample == "up"

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, out, H', W']`."""
        x = self.norm_in(doubled(x) if self.up else x)
        x = F.silu(self.norm_wide(self.expand(x)))
        x = F.silu(self.norm_deep(self.middle(x)))
        y: Tensor = self.norm_out(self.project(x))
        return y


class SqueezeExcitation(nn.Module):
    """Channels weighed by a network on their means over space.

    References:
        Squeeze-and-Excitation Networks (Hu et al., 2018), https://arxiv.org/abs/1709.01507
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 16, FEWEST)
        self.first = nn.Linear(channels, inner)
        self.last = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to the same shape."""
        weights = torch.sigmoid(self.last(F.relu(self.first(x.mean((2, 3))))))
        return x * weights[:, :, None, None]


class FactorisedReduction(nn.Module):
    """Half the resolution, twice the channels: each quarter of them sees one of four positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = 2 * channels // 4
        sizes = [quarter, quarter, quarter, 2 * channels - 3 * quarter]
        self.parts = nn.ModuleList(WeightNormConv2d(channels, n, 1, 2) for n in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, 2 channels, H/2, W/2]`."""
        x = F.silu(x)
        corners = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:, :])
        return torch.cat([f(c) for f, c in zip(self.parts, corners, strict=True)], dim=1)


class Enlargement(nn.Module):
    """Twice the resolution, bilinearly from corner to corner, and half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, channels / 2, 2H, 2W]`."""
        y: Tensor = self.conv(
            F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        )
        return y


class Part(Protocol):
    """What makes a part of a cell: `Residual` or `Inverted` with what is special to it."""

    def __call__(self, channels: int, out: int, resample: Resample = "none") -> nn.Module:
        """Build the part."""
        ...


class Cell(nn.Module):
    """skip(x) + 0.1 gate(f(x)).

    Args:
        parts: What f is made of; the first resamples.
        channels: Of the input; `down` doubles and `up` halves them.
        resample: Whether the cell changes the resolution.
        gated: Whether there is squeeze and excitation.
    """

    def __init__(
        self, parts: Sequence[Part], channels: int, resample: Resample, gated: bool
    ) -> None:
        super().__init__()
        out = {"none": channels, "down": 2 * channels, "up": channels // 2}[resample]
        skips = {"none": lambda _: nn.Identity(), "down": FactorisedReduction, "up": Enlargement}
        self.skip = skips[resample](channels)
        first, *rest = parts
        self.parts = nn.Sequential(first(channels, out, resample), *(p(out, out) for p in rest))
        self.gate = SqueezeExcitation(out) if gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, H, W]` to the cell's output."""
        # The sum of all cells is float32 under autocast too.
        y: Tensor = at_least_float32(self.skip(x)) + SHARE * self.gate(self.parts(x))
        return y


class Arrangement(NamedTuple):
    """Parts of the cells of each stage.

    Attributes:
        pre: Between the data and the latent scales, going up.
        encoder: Within the latent scales, going up.
        decoder: Within the latent scales, going down.
        post: Between the latent scales and the data, going down.
    """

    pre: list[Part]
    encoder: list[Part]
    decoder: list[Part]
    post: list[Part]


def _inverted(expand: int, kernel: int = 5, groups: int = 0) -> list[Part]:
    return [partial(Inverted, expand=expand, kernel=kernel, groups=groups)]


def _residual(first: int = 1, second: int = 1) -> list[Part]:
    return [partial(Residual, dilation=dilation) for dilation in (first, second)]


def _elu(normalise: bool) -> list[Part]:
    return [partial(Residual, activation=nn.ELU, normalise=normalise)] * 2


def _both_ways(upward: list[Part]) -> Arrangement:
    return Arrangement(upward, upward, _inverted(6), _inverted(3))


CELLS: dict[str, Arrangement] = {
    "res_mbconv": _both_ways(_residual()),
    "res_elu": Arrangement(*[_elu(normalise=False)] * 4),
    "res_bnelu": Arrangement(*[_elu(normalise=True)] * 4),
    "res_bnswish": Arrangement(*[_residual()] * 4),
    "mbconv_sep": Arrangement(_inverted(3), _inverted(6), _inverted(6), _inverted(3)),
    "mbconv_sep11": Arrangement(_inverted(3), _inverted(6, 11), _inverted(6, 11), _inverted(3)),
    "res53_mbconv": _both_ways(_residual(2, 1)),
    "res35_mbconv": _both_ways(_residual(1, 2)),
    "res55_mbconv": _both_ways(_residual(2, 2)),
    "mbconv_res": Arrangement(_inverted(3), _inverted(6), _residual(), _residual()),
    "mbconv_den": Arrangement(
        _inverted(3, groups=8), _inverted(6), _inverted(6), _inverted(3, groups=8)
    ),
}
