"""What a declared hierarchy says, and what is impossible about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ladder.config import Count, ModelConfig, Settings
from ladder.likelihoods import Likelihood

MOST_AXES = 3
Merge = Literal["direct", "precision_weighted", "concat", "residual_normal"]


class DenseLayer(Settings):
    """A dense stochastic layer, or several alike."""

    dim: Count
    """Number of latent units."""
    hidden: Annotated[list[Count], Field(default_factory=list)]
    """Widths of the network from below up to z; the network from z down has them reversed."""
    repeat: Count = 1
    """How many such layers stand on each other."""
    merge: Merge | None = None
    """How the posterior is made in the top-down pass; null takes the model's."""


class ConvLayer(Settings):
    """A convolutional stochastic layer, or several alike."""

    channels: Count
    """Latent channels at each position."""
    resolution: Count | Annotated[list[Count], Field(min_length=1, max_length=MOST_AXES)]
    """Extent of the latent map along every space axis, or one number for each axis. It divides
    that of the layer below; data that are no multiple of the lowest one are padded with zeros."""
    width: Count
    """Channels of the features."""
    blocks: Annotated[int, Field(ge=0)] = 1
    """Residual blocks on the way up to z, and as many on the way down from it."""
    repeat: Count = 1
    """How many such layers stand on each other."""
    merge: Merge | None = None
    """How the posterior is made in the top-down pass; null takes the model's."""


def _kind(layer: Any) -> str:
    """Name of the class that a layer is read as."""
    if isinstance(layer, Settings):
        return type(layer).__name__
    conv = isinstance(layer, dict) and layer.keys() & {"channels", "resolution", "width", "blocks"}
    return ConvLayer.__name__ if conv else DenseLayer.__name__


def _one_kind(layer: Any) -> Any:
    """Refuse a layer that says both kinds, before either complains of the other's fields."""
    if isinstance(layer, dict):
        dense = [f"'{key}'" for key in layer if key in ("dim", "hidden")]
        conv = [
            f"'{key}'" for key in layer if key in ("channels", "resolution", "width", "blocks")
        ]
        if dense and conv:
            raise ValueError(
                f"{dense[0]} is of dense layers and {conv[0]} of convolutional ones; "
                "give {dim, hidden} or {channels, resolution, width, blocks}"
            )
    return layer


LayerSpec = Annotated[
    Annotated[DenseLayer, Tag(DenseLayer.__name__)]
    | Annotated[ConvLayer, Tag(ConvLayer.__name__)],
    Discriminator(_kind),
    BeforeValidator(_one_kind),
]


class Config(ModelConfig):
    """A declared hierarchy."""

    system: Literal["hierarchy"] = "hierarchy"
    """Declared hierarchies."""
    inference: Literal["bottom_up", "ladder", "bidirectional"] = "bottom_up"
    """Where posteriors are drawn: going up; going down, from what the upward pass found; or one
    part of each z going up and the other going down."""
    kl: Literal["sampled", "closed_form"] = "sampled"
    """KL of bottom-up inference: log q - log p at the draw, whose mean is the ELBO, or the closed
    form, a looser bound (that of the mean-field posterior) where the state is markov, and none
    elsewhere. In the other kinds of inference what is drawn going down has the closed form, which
    is exact there, and what is drawn going up log q - log p."""
    merge: Merge | None = None
    """How posteriors drawn going down are made, where a layer does not say; null is
    precision_weighted for dense layers and concat for convolutional ones. The top one, which has
    nothing above it, is direct unless it says another."""
    top: Literal["standard", "learned", "constant"] = "standard"
    """p(z_L): N(0, I); learned means and scales; or a network on a learned constant."""
    state: Literal["markov", "residual", "skip"] | None = None
    """What flows down: z alone; a stream that each z is added to; or a network on both. With the
    last two, z_l depends on all layers above. null is residual if a layer is convolutional, else
    markov."""
    scale: Literal["log_variance", "log_scale", "softplus_variance"] = "log_variance"
    """What the networks emit for the scale of a latent."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = "relu"
    """Nonlinearity of every hidden layer."""
    likelihood: Likelihood = Field(default="bernoulli", validate_default=True)
    """p(x | z_1)."""
    layers: Annotated[list[LayerSpec], Field(min_length=1)]
    """Stochastic layers, from the data up: `{dim, hidden}` is dense, `{channels, resolution,
    width, blocks}` convolutional. Dense layers stand on convolutional ones."""

    @model_validator(mode="after")
    def _possible(self) -> Config:
        for complaint in complaints(self):
            raise ValueError(complaint)
        return self


def complaints(config: Config) -> Iterator[str]:
    """What is impossible about a declaration, a sentence for each, the lowest layer first."""
    closed = config.inference == "bottom_up" and config.kl == "closed_form"
    if closed and state_name(config) != "markov":
        yield (
            f"kl 'closed_form' is no bound with state '{state_name(config)}', where layers below "
            "see z beside what was drawn from it; take kl 'sampled' or state 'markov'"
        )
    for i, layer in enumerate(config.layers):
        below = config.layers[i - 1] if i else None
        if isinstance(layer, ConvLayer):
            yield from (f"layers[{i}]: {what}" for what in _misplaced(layer, below, config))
        yield from (f"layers[{i}]: {what}" for what in _unfit(layer, config))


def _misplaced(
    layer: ConvLayer, below: DenseLayer | ConvLayer | None, config: Config
) -> Iterator[str]:
    size = config.shape[1:]
    if not 1 <= len(size) <= MOST_AXES:
        yield (
            f"convolutional, but data of shape {config.shape} have {len(size)} space axes, not 1 "
            f"to {MOST_AXES}; give dense layers ('dim'), or the shape as [channels, *space]"
        )
    elif isinstance(below, DenseLayer):
        yield "convolutional, but the layer below it is dense; dense layers go above these"
    elif isinstance(layer.resolution, list) and len(layer.resolution) != len(size):
        yield (
            f"resolution {layer.resolution} has {len(layer.resolution)} axes, "
            f"but data of shape {config.shape} have {len(size)}"
        )
    elif below is None:
        yield from _too_large(layer, config.shape)
    else:
        yield from _grows(layer, space(layer, size), space(below, size))


def _too_large(layer: ConvLayer, shape: list[int]) -> Iterator[str]:
    for extent, data in zip(space(layer, shape[1:]), shape[1:], strict=True):
        if extent >= 2 * data:
            yield (
                f"resolution {layer.resolution} is at least twice the {data} of the data, whose "
                f"shape is {[*shape]}; give {data} or less"
            )
            return


def _grows(layer: ConvLayer, here: tuple[int, ...], there: tuple[int, ...]) -> Iterator[str]:
    for extent, below in zip(here, there, strict=True):
        if extent > below:
            yield (
                f"resolution {layer.resolution} is larger than {below} of the layer below; "
                "resolutions shrink or stay on the way up"
            )
            return
        if below % extent:
            fitting = [n for n in range(1, below + 1) if below % n == 0]
            yield (
                f"resolution {layer.resolution} does not divide {below} of the layer below; "
                f"give {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}"
            )
            return


def _unfit(layer: DenseLayer | ConvLayer, config: Config) -> Iterator[str]:
    merge = layer.merge or config.merge
    if config.inference == "bottom_up" and merge not in (None, "direct"):
        yield (
            f"merge '{merge}' does not fit inference 'bottom_up', which draws z before the "
            "top-down pass; leave it out, or take inference 'ladder' or 'bidirectional'"
        )
    if config.inference == "bidirectional" and channels(layer) < 2:
        name = "dim" if isinstance(layer, DenseLayer) else "channels"
        yield f"{name} 1 cannot be split for bidirectional inference; give at least 2"


def channels(layer: DenseLayer | ConvLayer) -> int:
    """Extent of z along axis 1."""
    return layer.dim if isinstance(layer, DenseLayer) else layer.channels


def space(layer: DenseLayer | ConvLayer, size: list[int]) -> tuple[int, ...]:
    """Extent of z along the space axes; empty for a dense layer."""
    if isinstance(layer, DenseLayer):
        return ()
    if isinstance(layer.resolution, list):
        return tuple(layer.resolution)
    return (layer.resolution,) * len(size)


def padded(config: Config) -> tuple[int, ...]:
    """Space of the data as the lowest layer sees them: the next multiple of its resolution."""
    size = config.shape[1:]
    lowest = space(config.layers[0], size)
    return tuple(math.ceil(n / r) * r for n, r in zip(size, lowest, strict=True))


def expanded(config: Config) -> list[DenseLayer | ConvLayer]:
    """Every stochastic layer from the data up, repeated ones each."""
    return [layer for layer in config.layers for _ in range(layer.repeat)]


def merge_name(layer: DenseLayer | ConvLayer, config: Config, top: bool) -> Merge:
    """The merge of a layer whose posterior is made in the top-down pass."""
    if layer.merge is not None:
        return layer.merge
    if top:
        return "direct"
    default: Merge = "precision_weighted" if isinstance(layer, DenseLayer) else "concat"
    return config.merge or default


def state_name(config: Config) -> str:
    """What flows down."""
    conv = any(isinstance(layer, ConvLayer) for layer in config.layers)
    return config.state or ("residual" if conv else "markov")
