"""Likelihoods: modules that turn raw parameters into p(x|z), and p(x|z) as values.

A value has `log_prob(x)` in nats (summing over its non-batch axes gives log p(x|z)), `mean` and
`sample()`. A head says with `raw_channels` how many raw parameters, on axis 1, it needs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.distributions import Normal, at_least_float32


class Observation(Protocol):
    """What every likelihood value can do."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of `x`, `[B, *shape]`, in nats."""
        ...

    @property
    def mean(self) -> Tensor:
        """Expected datum, `[B, *shape]`."""
        ...

    def sample(self) -> Tensor:
        """Draw a datum, `[B, *shape]`."""
        ...


class Bernoulli(NamedTuple):
    """Independent Bernoulli pixels; grey targets in [0, 1] give the cross-entropy."""

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """x log m + (1 - x) log(1 - m), elementwise, finite for every logit."""
        return -F.binary_cross_entropy_with_logits(self.logits, x, reduction="none")

    @property
    def mean(self) -> Tensor:
        """Probability of a one."""
        return self.logits.sigmoid()

    def sample(self) -> Tensor:
        """Draw zeros and ones."""
        mean = self.mean
        return (torch.rand_like(mean) < mean).to(mean.dtype)


class Gaussian(NamedTuple):
    """Independent Gaussian pixels; log densities, so values above 0 are no error."""

    normal: Normal

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, elementwise."""
        return self.normal.log_prob(x)

    @property
    def mean(self) -> Tensor:
        """Mean of the density."""
        return self.normal.mean

    def sample(self) -> Tensor:
        """Draw from the density."""
        return self.normal.rsample()


class BernoulliHead(nn.Module):
    """p(x|z) for data in [0, 1]: `[B, C, ...]` logits."""

    @staticmethod
    def raw_channels(channels: int) -> int:
        """Raw parameters of a pixel with so many channels."""
        return channels

    def forward(self, parameters: Tensor) -> Bernoulli:
        """Take the parameters as logits."""
        return Bernoulli(at_least_float32(parameters))


class GaussianHead(nn.Module):
    """p(x|z) with a mean for every pixel and one learned scale for all of them."""

    @staticmethod
    def raw_channels(channels: int) -> int:
        """Raw parameters of a pixel with so many channels."""
        return channels

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, parameters: Tensor) -> Gaussian:
        """Take the parameters as means."""
        mean = at_least_float32(parameters)
        return Gaussian(Normal(mean, self.log_scale.expand_as(mean)))


LIKELIHOODS: dict[str, type[BernoulliHead] | type[GaussianHead]] = {
    "bernoulli": BernoulliHead,
    "gaussian": GaussianHead,
}
