"""Likelihoods: modules that turn raw parameters into p(x|z), and p(x|z) as values.

A value has `log_prob(x)` in nats (summing over its non-batch axes gives log p(x|z)), `mean` and
`sample()`. A head says with `raw_channels` how many raw parameters, on axis 1, it needs; it works
for any number of axes after that, none included. Data are in [0, 1].

`Likelihood` is what a configuration says: a kind and its fields, or the bare word. A head takes
the same fields as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.config import Count, Positive, Settings
from ladder.distributions import Normal, at_least_float32
from ladder.logistics import (
    Bins,
    ColourMixture,
    DiscretizedLogistic,
    LogisticMixture,
    draw_index,
)

# The published floor of log-scales, and a ceiling that only keeps exp() finite.
LEAST, MOST = -7.0, 30.0

BinRule = Literal["exact", "pixelcnn", "nvae", "vdvae"]


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


class Categorical(NamedTuple):
    """Independent numbers, each with a probability for every level.

    Attributes:
        logits: `[B, C, levels, *space]`.
        bins: The levels.
    """

    logits: Tensor
    bins: Bins = Bins()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the levels of `x`, elementwise; no gradient reaches `x`."""
        level = self.bins.level(x).clamp(0, self.bins.last).long().unsqueeze(2)
        return self.logits.log_softmax(2).gather(2, level).squeeze(2)

    @property
    def mean(self) -> Tensor:
        """Expected datum."""
        values = torch.linspace(
            0, 1, self.bins.last + 1, dtype=self.logits.dtype, device=self.logits.device
        )
        return (self.logits.softmax(2).movedim(2, -1) * values).sum(-1)

    def sample(self) -> Tensor:
        """Draw levels, as data in [0, 1]."""
        return draw_index(self.logits, 2).squeeze(2).to(self.logits.dtype) / self.bins.last


class Head(nn.Module):
    """Raw parameters to p(x|z)."""

    def raw_channels(self, channels: int) -> int:
        """Raw parameters on axis 1 for data with so many channels."""
        return channels

    def forward(self, parameters: Tensor) -> Observation:
        """Turn `[B, raw_channels, *space]` into p(x|z) for x `[B, channels, *space]`."""
        raise NotImplementedError


class BernoulliHead(Head):
    """p(x|z) for data in [0, 1]: `[B, C, ...]` logits."""

    def forward(self, parameters: Tensor) -> Bernoulli:
        """Take the parameters as logits."""
        return Bernoulli(at_least_float32(parameters))


class _ScaledHead(Head):
    """Means, and log-scales that are one learned number or a second half of the parameters."""

    def __init__(self, scale: str | float, start: float) -> None:
        super().__init__()
        self.scale = scale
        if scale == "learned":
            self.log_scale = nn.Parameter(torch.full((), start))

    def raw_channels(self, channels: int) -> int:
        """Means of all channels, then, with `scale: pixel`, log-scales of all channels."""
        return 2 * channels if self.scale == "pixel" else channels

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw = at_least_float32(parameters)
        if self.scale == "pixel":
            mean, log_scale = raw.chunk(2, 1)
            return mean, log_scale.clamp(LEAST, MOST)
        if self.scale == "learned":
            return raw, self.log_scale.expand_as(raw)
        return raw, torch.full_like(raw, math.log(float(self.scale)))


class GaussianHead(_ScaledHead):
    """p(x|z) with a mean for every pixel.

    Args:
        scale: `learned`: one scale for all pixels (parameter `log_scale`, starting at 0);
            `pixel`: from the network, its log clamped to [-7, 30]; or the scale itself.
    """

    def __init__(self, scale: Literal["learned", "pixel"] | float = "learned") -> None:
        super().__init__(scale, 0.0)

    def forward(self, parameters: Tensor) -> Gaussian:
        """Take the parameters as means, and log-scales if the network gives them."""
        return Gaussian(Normal(*self._split(parameters)))


class LogisticHead(_ScaledHead):
    """p(x|z) of discretised logistics, in units of 2x - 1; log-scales are clamped to [-7, 30].

    Args:
        bits: Bits of a level, 1 to 8.
        scale: `pixel` from the network, or `learned`: one for all (`log_scale`, starting at -1).
        bins: `exact`, or the name of a published rule (`ladder.logistics.RULES`).
    """

    def __init__(
        self,
        bits: int = 8,
        scale: Literal["learned", "pixel"] = "pixel",
        bins: BinRule = "exact",
    ) -> None:
        super().__init__(scale, -1.0)
        self.bins = Bins(bits, bins)

    def forward(self, parameters: Tensor) -> DiscretizedLogistic:
        """Take the parameters as means, and log-scales if the network gives them."""
        mean, log_scale = self._split(parameters)
        return DiscretizedLogistic(mean, log_scale.clamp(LEAST, MOST), self.bins)


class LogisticMixtureHead(Head):
    """p(x|z) of mixtures of K discretised logistics, in units of 2x - 1.

    Three channels are colours and share a component (PixelCNN++). Axis 1 then has 10 K parameters
    in the published order, that of PixelCNN++, VD-VAE, NVAE and BIVA: K logits, then for red,
    green and blue K means, K log-scales and K raw coefficients, so parameter p of component k of
    colour c is K + 3 K c + K p + k. Where a code has channels last, move its last axis to axis 1.
    Any other number of channels is independent: for each K logits, K means and K log-scales.

    Log-scales are clamped to [-7, 30], with -7 as published; tanh bounds the coefficients.

    Args:
        mixtures: K.
        bits: Bits of a level, 1 to 8.
        bins: `exact`, or the name of a published rule (`ladder.logistics.RULES`).
    """

    def __init__(self, mixtures: int = 10, bits: int = 8, bins: BinRule = "exact") -> None:
        super().__init__()
        self.mixtures = mixtures
        self.bins = Bins(bits, bins)

    def raw_channels(self, channels: int) -> int:
        """10 K for three channels, else 3 K for each."""
        return (10 if channels == 3 else 3 * channels) * self.mixtures

    def forward(self, parameters: Tensor) -> LogisticMixture | ColourMixture:
        """Split the parameters; 10 K of them are three colours."""
        raw, k = at_least_float32(parameters), self.mixtures
        if raw.shape[1] != self.raw_channels(3):
            logits, mean, log_scale = raw.unflatten(1, (-1, 3, k)).unbind(2)
            return LogisticMixture(logits, mean, log_scale.clamp(LEAST, MOST), self.bins)
        logits = raw[:, :k].unsqueeze(1)
        mean, log_scale, coefficients = raw[:, k:].unflatten(1, (3, 3, k)).unbind(2)
        log_scale = log_scale.clamp(LEAST, MOST)
        return ColourMixture(logits, mean, log_scale, coefficients.tanh(), self.bins)


class CategoricalHead(Head):
    """p(x|z) with a softmax over the levels for every number of a datum.

    Args:
        bits: Bits of a level, 1 to 8.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bins = Bins(bits)

    def raw_channels(self, channels: int) -> int:
        """One logit for each level; the levels of the first channel come first."""
        return channels * (self.bins.last + 1)

    def forward(self, parameters: Tensor) -> Categorical:
        """Take the parameters as logits."""
        logits = at_least_float32(parameters).unflatten(1, (-1, self.bins.last + 1))
        return Categorical(logits, self.bins)


def _scale(value: Any) -> Any:
    if value in ("learned", "pixel"):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"should be 'learned', 'pixel' or a positive number, not {value!r}")


class LikelihoodSettings(Settings):
    """Base of every kind. A kind with nothing but defaults reads and is written as its word."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _shorten(self, write: SerializerFunctionWrapHandler) -> Any:
        fields = {name: field.default for name, field in type(self).model_fields.items()}
        return self.kind if dict(self) == fields else write(self)


Bits = Annotated[int, Field(ge=1, le=8)]


class BernoulliSpec(LikelihoodSettings):
    """Independent Bernoulli pixels."""

    kind: Literal["bernoulli"] = "bernoulli"


class GaussianSpec(LikelihoodSettings):
    """Independent Gaussian pixels: a density on [0, 1]."""

    kind: Literal["gaussian"] = "gaussian"
    scale: Annotated[Literal["learned", "pixel"] | Positive, BeforeValidator(_scale)] = "learned"
    """One learned scale, one for every pixel from the network, or a number."""


class LogisticSpec(LikelihoodSettings):
    """Independent discretised logistics."""

    kind: Literal["logistic"] = "logistic"
    bits: Bits = 8
    """Bits of a level; the data are 8-bit and lose the rest."""
    scale: Literal["learned", "pixel"] = "pixel"
    """One learned scale, or one for every pixel from the network."""
    bins: BinRule = "exact"
    """Bins that tile the line, or those of a published system."""


class LogisticMixtureSpec(LikelihoodSettings):
    """Mixtures of discretised logistics, autoregressive over three colours."""

    kind: Literal["logistic_mixture"] = "logistic_mixture"
    mixtures: Count = 10
    """Components."""
    bits: Bits = 8
    """Bits of a level; the data are 8-bit and lose the rest."""
    bins: BinRule = "exact"
    """Bins that tile the line, or those of a published system."""


class CategoricalSpec(LikelihoodSettings):
    """A softmax over the levels for every number of a datum."""

    kind: Literal["categorical"] = "categorical"
    bits: Bits = 8
    """Bits of a level; the data are 8-bit and lose the rest."""


def kind_of(value: Any) -> Any:
    """The kind of a likelihood that a configuration, or a caller, gives in any form."""
    if isinstance(value, Mapping):
        return value.get("kind")
    return value if isinstance(value, str) else getattr(value, "kind", None)


Kinds = (
    Annotated[BernoulliSpec, Tag("bernoulli")]
    | Annotated[GaussianSpec, Tag("gaussian")]
    | Annotated[LogisticSpec, Tag("logistic")]
    | Annotated[LogisticMixtureSpec, Tag("logistic_mixture")]
    | Annotated[CategoricalSpec, Tag("categorical")]
)
Likelihood = Annotated[Kinds, Discriminator(kind_of)]


def make_head(spec: LikelihoodSettings) -> Head:
    """Build the head that a configuration names, with the configuration's fields."""
    fields = dict(spec)
    return LIKELIHOODS[fields.pop("kind")](**fields)


LIKELIHOODS: dict[str, type[Head]] = {
    "bernoulli": BernoulliHead,
    "gaussian": GaussianHead,
    "logistic": LogisticHead,
    "logistic_mixture": LogisticMixtureHead,
    "categorical": CategoricalHead,
}
