"""Modules `h -> Normal`: the priors, and every other Gaussian that a network emits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.distributions import Normal, at_least_float32


def _half(v: Tensor) -> Tensor:
    return 0.5 * v


def _log_sqrt_softplus(v: Tensor) -> Tensor:
    return 0.5 * F.softplus(v).log()


def _half_softplus(v: Tensor) -> Tensor:
    return 0.5 * F.softplus(v)


def _half_tanh(v: Tensor) -> Tensor:
    return 0.5 * v.tanh()


# What a network's raw output means, as a map to the log of the standard deviation. With a softplus
# as the log of the variance no scale is below 1; with a tanh all are between 0.6 and 1.7.
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "log_variance": _half,
    "log_scale": torch.Tensor.clone,
    "softplus_variance": _log_sqrt_softplus,
    "softplus_log_variance": _half_softplus,
    "tanh_log_variance": _half_tanh,
}


class StandardNormal(nn.Module):
    """N(0, I) whatever the state; the usual top.

    Args:
        shape: Shape of z without the batch.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, h: Tensor) -> Normal:
        """Return zero mean and unit scale for each of the B rows of `h`."""
        zeros = at_least_float32(h).new_zeros(h.shape[0], *self.shape)
        return Normal(zeros, zeros)


class LearnedNormal(nn.Module):
    """One Gaussian for all data whose means and scales are parameters; N(0, I) at first.

    Args:
        shape: Shape of z without the batch.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, *shape))
        self.log_scale = nn.Parameter(torch.zeros(1, *shape))

    def forward(self, h: Tensor) -> Normal:
        """Return the same Gaussian for each of the B rows of `h`."""
        shape = (h.shape[0], *self.mean.shape[1:])
        mean, log_scale = at_least_float32(self.mean), at_least_float32(self.log_scale)
        return Normal(mean.expand(shape), log_scale.expand(shape))


class ConditionalNormal(nn.Module):
    """A Gaussian given features: the one place where they become one, in float32 or better.

    Args:
        net: Affine map to twice the latent's channels, on axis 1: means, then raw scales.
        scale: What the raw scales are, a key of `SCALES`.
    """

    def __init__(self, net: nn.Module, scale: str = "log_variance") -> None:
        super().__init__()
        self.net = net
        self.log_scale = SCALES[scale]

    def forward(self, h: Tensor) -> Normal:
        """Map features `[B, C, ...]` to a Gaussian over `[B, latent, ...]`."""
        mean, raw = at_least_float32(self.net(h)).chunk(2, dim=1)
        return Normal(mean, self.log_scale(raw))
