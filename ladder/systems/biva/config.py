"""What a BIVA says."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ladder.config import Count, ModelConfig, Settings
from ladder.likelihoods import BernoulliSpec, Likelihood

Natural = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


def _number_or_above(value: Any) -> Any:
    if isinstance(value, str) and value != "above":
        raise ValueError(f"should be a number or 'above', not '{value}'")
    return value


class LayerSpec(Settings):
    """One stochastic layer, or several alike; `dim` or `channels`, each for every variable."""

    dim: Count | None = None
    """Numbers in each variable of a dense layer."""
    channels: Count | None = None
    """Channels of each variable of a convolutional layer, a map of the layer's resolution."""
    latent_kernel: Count | None = None
    """Extent of the convolutions that emit parameters of a map; null takes the last block's."""
    kernel: Count | Annotated[list[Count], Field(min_length=1)] = 3
    """Extent of the convolutions in all blocks, or in each of them, going up."""
    stride: Count = 1
    """Factor by which the last block going up lowers the resolution, and the first going down
    raises it."""
    repeat: Count = 1
    """How many such layers stand on each other."""

    @model_validator(mode="after")
    def _one_kind(self) -> LayerSpec:
        if (self.dim is None) == (self.channels is None):
            raise ValueError(
                "give either 'dim' for a dense layer, or 'channels' for a convolutional one"
            )
        if self.dim is not None and self.latent_kernel is not None:
            raise ValueError("'latent_kernel' is of convolutional layers; leave it out, or 'dim'")
        if min(self.kernels(1)) < self.stride:
            raise ValueError(
                f"'kernel' is {min(self.kernels(1))}, less than 'stride', {self.stride}: "
                "positions between two outputs would be left out"
            )
        return self

    def kernels(self, blocks: int) -> list[int]:
        """Extent of the convolutions in each of so many blocks, going up."""
        return self.kernel if isinstance(self.kernel, list) else [self.kernel] * blocks

    @property
    def size(self) -> int:
        """Numbers, or channels, of a variable."""
        size = self.dim or self.channels
        assert size is not None
        return size


class Config(ModelConfig):
    """A BIVA of images, or its ladder or bottom-up relative with the same blocks."""

    system: Literal["biva"] = "biva"
    """Maaløe and others' bidirectional-inference VAE."""
    layers: Annotated[list[LayerSpec], Field(min_length=1)]
    """Stochastic layers, from the data up."""
    inference: Literal["bottom_up", "ladder", "bidirectional"] = "bidirectional"
    """Where posteriors are drawn: going up; going down; or one variable of each layer going up and
    another going down, but for the top one."""
    filters: Count = 64
    """Channels of all features."""
    blocks: Count = 3
    """Gated blocks of a layer in each pass."""
    scale: Literal["softplus_log_variance", "log_variance", "tanh_log_variance"] = (
        "softplus_log_variance"
    )
    """What the networks emit for the scale of a latent: raw numbers whose softplus is the log of
    the variance, so that no standard deviation is below 1, as published; the log of the variance;
    or one whose tanh that is."""
    conditional_bu: bool = False
    """Whether the prior of the variable drawn going up sees that drawn going down too, p(z^BU |
    z^TD, .), instead of being independent of it given the layers above."""
    pad: Natural = 0
    """Zeros around the data on each side; more come where a stride asks for them. p(x | z) is of
    what is inside."""
    centre: bool | None = None
    """Whether blocks see the data, with the zeros, as 2x - 1; null does so unless p(x | z) is
    Bernoulli, as published."""
    skip: bool = True
    """Whether blocks see the features of the layer before theirs, beside its z."""
    q_dropout: Probability = 0.0
    """Probability of a number in the blocks of inference to be dropped in training."""
    p_dropout: Probability = 0.0
    """The same in the blocks of the generative model."""
    learn_top_prior: bool = False
    """Whether p(z_L), N(0, I) at first, is learned."""
    input_activation: Literal["residual", "every"] = "residual"
    """Which blocks begin with an ELU: those with a residual connection, or every one, as in the
    TensorFlow original."""
    shortcut: Literal["cropped", "padded"] = "cropped"
    """Residual connections where channels or resolution change. cropped: the first channels of
    more, nothing for fewer, means over 3 x 3. padded, as in the TensorFlow original: nothing for
    more, zeros beside fewer, means over what the stride leaves out."""
    merge_kernel: Annotated[Count | Literal["above"], BeforeValidator(_number_or_above)] = 3
    """Extent of the convolutions that merge both passes, or condition a prior, in bidirectional
    inference, which alone has them; above, as in the TensorFlow original, is that of the first
    block of the layer above."""
    top_order: Literal["bu_td", "td_bu"] = "bu_td"
    """Order in which the top layer of bidirectional inference sees the two upward passes; td_bu
    is the TensorFlow original's."""
    initial_variance: Literal["unbiased", "biased"] = "unbiased"
    """Variance of a layer's outputs for the first data of the training set, by which it is
    initialised: over n - 1 and 1e-8 more, or, as in the TensorFlow original, over n and 1e-10
    more."""
    likelihood: Likelihood = BernoulliSpec()
    """p(x | z)."""

    @model_validator(mode="after")
    def _can_be_built(self) -> Config:
        if len(self.shape) != 3:
            raise ValueError(
                f"'shape' should be [channels, height, width], not {self.shape}: "
                "these convolutions are two-dimensional"
            )
        for i, layer in enumerate(self.layers):
            if len(layer.kernels(self.blocks)) != self.blocks:
                raise ValueError(
                    f"layers[{i}]: 'kernel' has {len(layer.kernels(self.blocks))} numbers, but "
                    f"'blocks' is {self.blocks}; give one for each block, or one for all"
                )
        if self.conditional_bu and self.inference != "bidirectional":
            raise ValueError(
                f"'conditional_bu' is of bidirectional inference, not of '{self.inference}'"
            )
        return self

    @property
    def stack(self) -> list[LayerSpec]:
        """Every layer by itself, from the data up."""
        return _expand(self.layers)

    @property
    def padded(self) -> list[int]:
        """Height and width of the data with zeros around them."""
        factor = math.prod(layer.stride for layer in self.stack)
        return [-(-(extent + 2 * self.pad) // factor) * factor for extent in self.shape[1:]]

    @property
    def centred(self) -> bool:
        """Whether blocks see the data as 2x - 1."""
        return self.likelihood.kind != "bernoulli" if self.centre is None else self.centre

    def space(self, i: int) -> list[int]:
        """Height and width of the i-th layer of the stack."""
        factor = math.prod(layer.stride for layer in self.stack[: i + 1])
        return [extent // factor for extent in self.padded]


def _expand(layers: list[LayerSpec]) -> list[LayerSpec]:
    return [layer for layer in layers for _ in range(layer.repeat)]
