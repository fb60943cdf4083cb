"""What a very deep VAE says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladder.config import Count, ModelConfig, Positive, Settings
from ladder.likelihoods import Likelihood, LogisticMixtureSpec


class Scale(Settings):
    """Everything at one resolution."""

    resolution: Count
    """Height and width; divides that of the scale below."""
    layers: Annotated[int, Field(ge=0)] = 1
    """Stochastic layers."""
    encoder_blocks: Annotated[int, Field(ge=0)] = 1
    """Residual blocks of the upward pass; the last one pools, but for the top scale's."""
    width: Count | None = None
    """Channels; null takes the model's."""
    mix: bool | Count = True
    """Whether the first layer adds the map of the next scale above that has layers, or the
    resolution of the scale whose map it adds."""


class Pixels(Settings):
    """Mean and standard deviation of the data, in units of 0 to 255."""

    mean: float = 127.5
    """What becomes 0 in the upward pass."""
    std: Positive = 127.5
    """What becomes 1 in the upward pass."""


class Config(ModelConfig):
    """A very deep VAE of square images."""

    system: Literal["vdvae"] = "vdvae"
    """Child's very deep VAE."""
    scales: Annotated[list[Scale], Field(min_length=1)]
    """The plan, from the data up."""
    width: Count = 384
    """Channels of all maps."""
    bottleneck: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Channels inside a block over those around it."""
    zdim: Count = 16
    """Latent channels at each position."""
    no_bias_above: Annotated[int, Field(ge=0)] = 64
    """Largest resolution whose first map is learned; above it, maps are zero at first."""
    normalize: Pixels = Pixels()
    """How the upward pass sees the data."""
    likelihood: Likelihood = LogisticMixtureSpec()
    """p(x | z)."""

    @model_validator(mode="after")
    def _can_be_built(self) -> Config:
        if len(self.shape) != 3 or self.shape[1] != self.shape[2]:
            raise ValueError(
                f"'shape' should be [channels, size, size], not {self.shape}: images are square"
            )
        if self.scales[0].resolution != self.shape[1]:
            raise ValueError(
                f"scales[0]: 'resolution' is {self.scales[0].resolution}, but the data have "
                f"{self.shape[1]}; scales are listed from the data up"
            )
        if not (self.scales[0].layers and self.layers):
            raise ValueError("scales[0]: 'layers' should be at least 1: x is made of their map")
        for i in range(len(self.scales)):
            self._check_scale(i)
        return self

    def _check_scale(self, i: int) -> None:
        scale, top = self.scales[i], i == len(self.scales) - 1
        if not top and self.scales[i + 1].resolution not in _parts(scale.resolution):
            raise ValueError(
                f"scales[{i + 1}]: 'resolution' is {self.scales[i + 1].resolution}, which should "
                f"be one of {_parts(scale.resolution)}, parts of the {scale.resolution} below"
            )
        if not top and scale.encoder_blocks == 0:
            raise ValueError(
                f"scales[{i}]: 'encoder_blocks' should be at least 1: the last one pools"
            )
        if not top and self.width_at(i + 1) < self.width_at(i):
            raise ValueError(
                f"scales[{i + 1}]: 'width' is {self.width_at(i + 1)}, less than the "
                f"{self.width_at(i)} of the scale below; widths may only grow going up"
            )
        above = [s.resolution for s in self.scales[i + 1 :] if s.layers]
        if not isinstance(scale.mix, bool) and scale.mix not in above:
            raise ValueError(
                f"scales[{i}]: 'mix' is {scale.mix}, but the scales above that have layers are "
                f"{above}"
            )
        if self.inner(self.width_at(i)) == 0:
            raise ValueError(
                f"'bottleneck' {self.bottleneck} of {self.width_at(i)} channels leaves none"
            )

    def width_at(self, i: int) -> int:
        """Channels of `scales[i]`."""
        return self.scales[i].width or self.width

    def inner(self, width: int) -> int:
        """Channels inside a block with so many around it."""
        return int(width * self.bottleneck)

    def mixed(self, i: int) -> int | None:
        """Resolution whose map the first layer of `scales[i]` adds."""
        above = [s.resolution for s in self.scales[i + 1 :] if s.layers]
        mix = self.scales[i].mix
        if mix is True:
            return above[0] if above else None
        return mix or None

    @property
    def layers(self) -> int:
        """Number L of stochastic layers."""
        return sum(scale.layers for scale in self.scales)

    @property
    def encoder_blocks(self) -> int:
        """Number of residual blocks of the upward pass."""
        return sum(scale.encoder_blocks for scale in self.scales)


def _parts(resolution: int) -> list[int]:
    return [r for r in range(1, resolution) if resolution % r == 0]
