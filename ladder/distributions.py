"""Diagonal Gaussians as values: priors, posteriors, and posteriors already drawn.

All are `NamedTuple`s of tensors, so they pass through `torch.compile`, DDP and pytrees unchanged.
Every method works elementwise and in nats; summing over a layer is the objective's business.
Which estimator of the KL is right follows from when z was drawn, so it is a property of the
posterior's type.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)


def at_least_float32(parameters: Tensor) -> Tensor:
    """Networks may run in bfloat16; distributions do not. float64 stays what it is."""
    return parameters.to(torch.promote_types(parameters.dtype, torch.float32))


class Posterior(Protocol):
    """What every posterior can do, elementwise and shaped like z."""

    @property
    def mean(self) -> Tensor:
        """Mean of z."""
        ...

    @property
    def log_scale(self) -> Tensor:
        """Log of the standard deviation of z."""
        ...

    def rsample(self, temperature: float | Tensor = 1.0) -> Tensor:
        """Draw z, differentiably; or hand out the draw that was made on the way up."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of `z`."""
        ...

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """Estimate of KL(self || p) given the draw `z`."""
        ...


class Normal(NamedTuple):
    """Elementwise Gaussian with standard deviation `exp(log_scale)`; both `[B, *latent]`."""

    mean: Tensor
    log_scale: Tensor

    def rsample(self, temperature: float | Tensor = 1.0) -> Tensor:
        """Draw with the standard deviation multiplied by `temperature`; 0 gives the mean."""
        # In one order, wherever channels lie in memory: the layout decides speed, not numbers.
        noise = torch.randn_like(self.mean, memory_format=torch.contiguous_format)
        return self.mean + temperature * self.log_scale.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of `z`, elementwise."""
        standardised = (z - self.mean) * (-self.log_scale).exp()
        return -0.5 * standardised.square() - self.log_scale - HALF_LOG_TAU

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """Closed-form KL(self || p), elementwise; unbiased when p was fixed before z was drawn."""
        log_ratio = p.log_scale - self.log_scale
        distance = (self.mean - p.mean) * (-p.log_scale).exp()
        return log_ratio + 0.5 * ((-2.0 * log_ratio).exp() + distance.square() - 1.0)


class Sampled(Normal):
    """A posterior drawn going down whose KL is the sampled estimate of the same KL, as published.

    Some systems optimise log q - log p at the draw although the closed form is at hand.
    """

    __slots__ = ()

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """log q(z) - log p(z), elementwise."""
        return self.log_prob(z) - p.log_prob(z)


class Drawn(NamedTuple):
    """A posterior whose `z` was drawn already, on the way up if nothing else is said.

    Its KL is the sampled estimate. Going up, the prior of z conditions on variables that were
    drawn from z, so the ELBO of this posterior needs log q - log p at the draw itself.
    """

    normal: Normal
    z: Tensor

    @property
    def mean(self) -> Tensor:
        """Posterior mean."""
        return self.normal.mean

    @property
    def log_scale(self) -> Tensor:
        """Log of the posterior standard deviation."""
        return self.normal.log_scale

    def rsample(self, temperature: float | Tensor = 1.0) -> Tensor:
        """The draw that was made; it has happened, so no temperature can change it."""
        return self.z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of `z`, elementwise."""
        return self.normal.log_prob(z)

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """log q(z) - log p(z), elementwise."""
        return self.normal.log_prob(z) - p.log_prob(z)


class ClosedDrawn(Drawn):
    """A posterior whose `z` was drawn on the way up, with the closed-form KL.

    In a Markov hierarchy the objective then bounds the ELBO of the mean-field posterior,
    prod_l q(z_l | x): still a bound on log p(x), a looser one than `Drawn` gives, and what the
    documented two-layer model optimises. Where layers below z_l see what is above it too, it
    bounds nothing.
    """

    __slots__ = ()

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """Closed-form KL(q || p), elementwise."""
        return self.normal.kl(p, z)


class Flowed(Drawn):
    """A posterior drawn going down, whose draw was moved by a flow that keeps the volume.

    With z = z0 + d(z0), z0 ~ q0 and log |det| = 0, log q(z) = log q0(z0), which is the density at
    z of q0 moved by d. So `normal` is q0 moved as this draw was: its density is right at the draw
    alone, and its mean is a one-draw estimate of the mean of z, without the noise of q0.
    """

    __slots__ = ()


class Joined(NamedTuple):
    """A posterior of which one part is drawn going down and the other was drawn going up.

    Bidirectional inference (Maaløe et al. 2019): z_l = [z_l^TD, z_l^BU] on axis 1. Everything that
    the prior of z_l^TD conditions on is fixed before it is drawn, so a `Normal` has the closed
    form there; the KL of either part is what its type says.
    """

    td: Normal
    bu: Drawn

    @property
    def mean(self) -> Tensor:
        """Posterior means, those of the part drawn going down first."""
        return torch.cat([self.td.mean, self.bu.mean], dim=1)

    @property
    def log_scale(self) -> Tensor:
        """Log of the posterior standard deviations."""
        return torch.cat([self.td.log_scale, self.bu.log_scale], dim=1)

    def rsample(self, temperature: float | Tensor = 1.0) -> Tensor:
        """Draw the part that is drawn going down, beside the one that was drawn going up."""
        return torch.cat([self.td.rsample(temperature), self.bu.rsample()], dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of `z`, elementwise."""
        td, bu = self.parts(z)
        return torch.cat([self.td.log_prob(td), self.bu.log_prob(bu)], dim=1)

    def kl(self, p: Normal, z: Tensor) -> Tensor:
        """KL of each part, as its type estimates it."""
        p_td, p_bu = (Normal(*parts) for parts in zip(*map(self.parts, p), strict=True))
        td, bu = self.parts(z)
        return torch.cat([self.td.kl(p_td, td), self.bu.kl(p_bu, bu)], dim=1)

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Split values shaped like z into those drawn going down and those drawn going up."""
        n = self.td.mean.shape[1]
        return values[:, :n], values[:, n:]
