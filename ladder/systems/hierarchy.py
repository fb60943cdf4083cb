"""Declared hierarchies: any number of dense stochastic layers, listed from the data up.

Generative model (Markov, top-down):   p(z_L) prod_l p(z_l | z_{l+1}) p(x | z_1)
Inference, `bottom_up`:                q(z_1 | x) prod_l q(z_l | z_{l-1}, h_{l-1})

where h_l are the deterministic features of the network that emits q(z_l). State: z of the layer
above, `[B, dim]`; above the top it is empty. Evidence: the posterior already drawn.

The documented two-layer model is the preset `mnist_2layer`. Differences from its code:

* one affine map emits mean and log-variance together, so a weight copied from there is two
  matrices stacked; the function and the initial distribution are the same;
* the likelihood is computed from logits, which is the same cross-entropy without the clamp of
  log at -100 that a sigmoid needs.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from ladder.config import Count, ModelConfig, Settings
from ladder.inference import DRAWS, BottomUp, Rung
from ladder.layers import Markov, StochasticLayer
from ladder.likelihoods import LIKELIHOODS
from ladder.merges import Direct
from ladder.model import Constant, HierarchicalVAE, TopDown
from ladder.nets import mlp
from ladder.priors import ConditionalNormal, StandardNormal


class LayerSpec(Settings):
    """One stochastic layer, or several alike."""

    dim: Count
    """Number of latent units."""
    hidden: Annotated[list[Count], Field(default_factory=list)]
    """Widths of the network from below up to z; the network from z down has them reversed."""
    repeat: Count = 1
    """How many such layers stand on each other."""


class Config(ModelConfig):
    """A declared hierarchy."""

    system: Literal["hierarchy"] = "hierarchy"
    """Declared hierarchies."""
    inference: Literal["bottom_up"] = "bottom_up"
    """Where posteriors are drawn: going up."""
    kl: Literal["sampled", "closed_form"] = "sampled"
    """KL of a posterior drawn going up: log q - log p at the draw, whose mean is the ELBO, or the
    closed form, a looser bound (that of the mean-field posterior)."""
    scale: Literal["log_variance", "log_scale", "softplus_variance"] = "log_variance"
    """What the networks emit for the scale of a latent."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh"] = "relu"
    """Nonlinearity after every hidden layer."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """p(x | z_1)."""
    layers: Annotated[list[LayerSpec], Field(min_length=1)]
    """Stochastic layers, from the data up."""


def build(config: Config) -> HierarchicalVAE:
    """Build the declared hierarchy with freshly initialised weights."""
    specs = {f"z{i}": spec for i, spec in enumerate(_expand(config.layers), start=1)}
    return HierarchicalVAE(
        _bottom_up(specs, config), _top_down(specs, config), _likelihood(config)
    )


def _expand(layers: list[LayerSpec]) -> list[LayerSpec]:
    return [spec for spec in layers for _ in range(spec.repeat)]


def _width(width: int, hidden: list[int]) -> int:
    return hidden[-1] if hidden else width


def _bottom_up(specs: dict[str, LayerSpec], config: Config) -> BottomUp:
    rungs: dict[str, Rung] = {}
    below = math.prod(config.shape)
    for name, spec in specs.items():
        h = _width(below, spec.hidden)
        posterior = ConditionalNormal(nn.Linear(h, 2 * spec.dim), config.scale)
        rungs[name] = Rung(mlp(below, spec.hidden, config.activation), posterior, DRAWS[config.kl])
        below = spec.dim + h
    return BottomUp(rungs)


def _top_down(specs: dict[str, LayerSpec], config: Config) -> TopDown:
    layers: dict[str, StochasticLayer] = {}
    above: LayerSpec | None = None
    for name, spec in reversed(specs.items()):
        layers[name] = _layer(spec, above, config)
        above = spec
    assert above is not None
    return TopDown(Constant(0), layers, _down(above, config))


def _layer(spec: LayerSpec, above: LayerSpec | None, config: Config) -> StochasticLayer:
    if above is None:
        return StochasticLayer(nn.Identity(), StandardNormal(spec.dim), Direct(), Markov())
    h = _width(above.dim, above.hidden[::-1])
    prior = ConditionalNormal(nn.Linear(h, 2 * spec.dim), config.scale)
    return StochasticLayer(_down(above, config), prior, Direct(), Markov())


def _down(spec: LayerSpec, config: Config) -> nn.Sequential:
    return mlp(spec.dim, spec.hidden[::-1], config.activation)


def _likelihood(config: Config) -> nn.Sequential:
    head = LIKELIHOODS[config.likelihood]()
    bottom = config.layers[0]
    features = _width(bottom.dim, bottom.hidden[::-1])
    channels, *space = config.shape
    shape = (head.raw_channels(channels), *space)
    return nn.Sequential(nn.Linear(features, math.prod(shape)), nn.Unflatten(1, shape), head)
