"""What a convolutional Ladder VAE says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ladder.config import Count, ModelConfig, Settings
from ladder.likelihoods import BernoulliSpec, Likelihood


class LayerSpec(Settings):
    """One stochastic layer, or several alike."""

    channels: Count = 32
    """Latent channels at each position."""
    downsample: Annotated[int, Field(ge=0)] = 0
    """How often the layer halves the resolution of what lies below it; a block does it once."""
    repeat: Count = 1
    """How many such layers stand on each other."""


class Config(ModelConfig):
    """A convolutional Ladder VAE; the defaults are those of the published models."""

    system: Literal["lvae_conv"] = "lvae_conv"
    """The convolutional relative of the Ladder VAE."""
    layers: Annotated[list[LayerSpec], Field(min_length=1)]
    """Stochastic layers, from the data up."""
    filters: Count = 64
    """Channels of all features."""
    blocks_per_layer: Count = 4
    """Residual blocks of a layer on the way up, and as many on the way down."""
    block: Literal["bacdbacd", "bacdbac", "cabdcabd"] = "bacdbacd"
    """What a residual block is, in this order: a activation, b batch norm, c convolution,
    d dropout of whole channels."""
    activation: Literal["elu", "relu", "leaky_relu", "selu"] = "elu"
    """Nonlinearity."""
    batch_norm: bool = True
    """Whether blocks normalise; without it their letters b are left out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Probability of a channel to be dropped in training."""
    gated: bool = True
    """Whether residual blocks end with a gate; those of a merge always do."""
    skip: bool = True
    """Whether a layer sees all layers above it, not only the next."""
    merge: Literal["residual", "linear"] = "residual"
    """How the posterior sees the upward and the downward pass: a 1x1 convolution of both, with or
    without a residual block after it."""
    learn_top_prior: bool = True
    """Whether p(z_L), N(0, I) at first, is learned."""
    initial_downscaling: bool = True
    """Whether the first convolution halves the resolution."""
    kl: Literal["sampled", "closed_form"] = "sampled"
    """Estimate of the KL: log q - log p at the draw, as published, or the closed form. Their means
    are the same."""
    likelihood: Likelihood = BernoulliSpec()
    """p(x | t_1)."""
    data_dependent_init: bool = True
    """Whether training first scales every convolution by its outputs for the first batch."""

    @model_validator(mode="after")
    def _can_be_built(self) -> Config:
        if len(self.shape) != 3:
            raise ValueError(
                f"'shape' should be [channels, height, width], not {self.shape}: "
                "these convolutions are two-dimensional"
            )
        for i, layer in enumerate(self.layers):
            if layer.downsample > self.blocks_per_layer:
                raise ValueError(
                    f"layers[{i}]: 'downsample' is {layer.downsample}, but each of the "
                    f"{self.blocks_per_layer} blocks ('blocks_per_layer') halves at most once"
                )
        return self

    @property
    def stack(self) -> list[LayerSpec]:
        """Every layer by itself, from the data up."""
        return _expand(self.layers)

    @property
    def factor(self) -> int:
        """Extent of the padded data over that of the top layer's z."""
        halvings = sum(layer.downsample for layer in self.stack) + self.initial_downscaling
        return int(2**halvings)

    @property
    def padded(self) -> list[int]:
        """Height and width of the data with zeros around them."""
        return [-(-extent // self.factor) * self.factor for extent in self.shape[1:]]


def _expand(layers: list[LayerSpec]) -> list[LayerSpec]:
    return [layer for layer in layers for _ in range(layer.repeat)]
