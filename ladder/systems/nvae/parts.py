"""What fills the four slots of a stochastic layer of NVAE, and its soft clamps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.distributions import Normal, at_least_float32
from ladder.likelihoods import Head
from ladder.weightnorm import WeightNormConv2d

BOUND = 5.0  # of clamped means and log-scales
LEAST = 0.01  # added to every standard deviation


def clamped(raw: Tensor) -> Tensor:
    """5 tanh(raw / 5): raw near 0, and between -5 and 5 everywhere."""
    return BOUND * torch.tanh(raw / BOUND)


def soft_normal(raw: Tensor) -> Normal:
    """N(c(m), exp(c(s)) + 0.01) of raw [m, s] on axis 1, c the clamp; scales 0.017 to 148.4."""
    mean, log_scale = clamped(at_least_float32(raw)).chunk(2, dim=1)
    return Normal(mean, (log_scale.exp() + LEAST).log())


class Above(NamedTuple):
    """What a layer sees of the layers above it.

    Attributes:
        features: `[B, C, H, W]`.
        raw: Parameters of the prior before the clamp, `[B, 2 zdim, H, W]`.
    """

    features: Tensor
    raw: Tensor


class Top(nn.Module):
    """Transition of the top layer: the state as it is, and a prior of zeros.

    Clamped zeros are N(0, 1.01), as published.

    Args:
        zdim: Channels of z.
    """

    def __init__(self, zdim: int) -> None:
        super().__init__()
        self.zdim = zdim

    def forward(self, state: Tensor) -> Above:
        """Map `[B, C, H, W]` to what the top layer sees."""
        zeros = state.new_zeros(state.shape[0], 2 * self.zdim, *state.shape[2:])
        return Above(state, zeros)


class Descend(nn.Module):
    """Transition: cells on the state, then the prior's parameters.

    Args:
        cells: `state -> features`.
        channels: Of the features.
        zdim: Channels of z.
    """

    def __init__(self, cells: nn.Module, channels: int, zdim: int) -> None:
        super().__init__()
        self.cells = cells
        self.sampler = WeightNormConv2d(channels, 2 * zdim, 1)

    def forward(self, state: Tensor) -> Above:
        """Map the state above to what the layer sees."""
        features = self.cells(state)
        return Above(features, self.sampler(F.elu(features)))


class Prior(nn.Module):
    """p(z_l | z_>l), clamped."""

    def forward(self, h: Above) -> Normal:
        """Return the prior."""
        return soft_normal(h.raw)


class Combiner(nn.Module):
    """Raw parameters of q from both passes: a 3x3 convolution of d_l + W h.

    Args:
        channels: Of the evidence.
        above: Of the features above.
        zdim: Channels of z.
    """

    def __init__(self, channels: int, above: int, zdim: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(above, channels, 1)
        self.sampler = WeightNormConv2d(channels, 2 * zdim, 3)

    def forward(self, h: Above, evidence: Tensor) -> Tensor:
        """Map features `[B, C, H, W]` of both passes to `[B, 2 zdim, H, W]`."""
        raw: Tensor = self.sampler(evidence + self.conv(h.features))
        return raw


class TopMerge(nn.Module):
    """q(z_L | x): the evidence alone, through a 1x1 and a 3x3 convolution.

    Args:
        channels: Of the evidence.
        zdim: Channels of z.
    """

    def __init__(self, channels: int, zdim: int) -> None:
        super().__init__()
        self.neck = WeightNormConv2d(channels, channels, 1)
        self.sampler = WeightNormConv2d(channels, 2 * zdim, 3)

    def forward(self, h: Above, evidence: Tensor, p: Normal) -> Normal:
        """Return the posterior."""
        return soft_normal(self.sampler(F.elu(self.neck(F.elu(evidence)))))


class Absolute(nn.Module):
    """q by its own parameters."""

    def __init__(self, combiner: Combiner) -> None:
        super().__init__()
        self.combiner = combiner

    def forward(self, h: Above, evidence: Tensor, p: Normal) -> Normal:
        """Return the posterior."""
        return soft_normal(self.combiner(h, evidence))


class Relative(nn.Module):
    """q relative to p: raw parameters are added, then clamped."""

    def __init__(self, combiner: Combiner) -> None:
        super().__init__()
        self.combiner = combiner

    def forward(self, h: Above, evidence: Tensor, p: Normal) -> Normal:
        """Return the posterior."""
        # Small changes would be lost in a sum of 8 bits.
        return soft_normal(at_least_float32(h.raw) + self.combiner(h, evidence))


class Combine(nn.Module):
    """The state below: a 1x1 convolution of the features and z.

    Args:
        channels: Of the features and of the state.
        zdim: Channels of z.
    """

    def __init__(self, channels: int, zdim: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(channels + zdim, channels, 1)

    def forward(self, h: Above, z: Tensor) -> Tensor:
        """Return the state for the layer below, `[B, channels, H, W]`."""
        state: Tensor = self.conv(torch.cat([h.features, z], dim=1))
        return state


class Only(nn.Module):
    """The state below the only layer of a model: a 1x1 convolution of z.

    Args:
        channels: Of the state.
        zdim: Channels of z.
    """

    def __init__(self, channels: int, zdim: int) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(zdim, channels, 1)

    def forward(self, h: Above, z: Tensor) -> Tensor:
        """Return the state, `[B, channels, H, W]`."""
        state: Tensor = self.conv(z)
        return state


class SoftNormal(NamedTuple):
    """Independent Gaussian pixels of y = 2x - 1: log densities of y, as published.

    Attributes:
        normal: Of y, `[B, C, H, W]`.
    """

    normal: Normal

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of 2x - 1, elementwise; that of x is higher by log 2."""
        return self.normal.log_prob(2.0 * x - 1.0)

    @property
    def mean(self) -> Tensor:
        """Mean of x, which may leave [0, 1]."""
        return (self.normal.mean + 1.0) / 2.0

    def sample(self) -> Tensor:
        """Draw x, which may leave [0, 1]."""
        return (self.normal.rsample() + 1.0) / 2.0


class SoftNormalHead(Head):
    """p(x|z) of Gaussians whose means and log-scales are clamped like those of z."""

    def raw_channels(self, channels: int) -> int:
        """Means of all channels, then log-scales."""
        return 2 * channels

    def forward(self, parameters: Tensor) -> SoftNormal:
        """Clamp the parameters."""
        return SoftNormal(soft_normal(parameters))
