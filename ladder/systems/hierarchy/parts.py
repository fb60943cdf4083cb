"""The modules of a declared hierarchy, dense or convolutional, and the shapes between them.

A shape is that of one datum: `(width,)` or `(channels, *space)`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from ladder.inference import DRAWS, BothRung, DrawnRung, FeatureRung
from ladder.layers import Markov, Residual, Skip, StochasticLayer
from ladder.merges import Bidirectional, Concat, Direct, PrecisionWeighted, ResidualNormal
from ladder.nets import blocks, convolution, grow, mlp, scaled, shrink
from ladder.priors import ConditionalNormal, LearnedNormal, StandardNormal
from ladder.systems.hierarchy.declared import (
    Config,
    ConvLayer,
    DenseLayer,
    Merge,
    channels,
    expanded,
    merge_name,
    space,
    state_name,
)

Shape = tuple[int, ...]


class Site(NamedTuple):
    """One stochastic layer in its place.

    Attributes:
        name: `z1` to `zL`.
        layer: Its declaration.
        merge: How its posterior is made in the top-down pass.
        z: Shape of its latent.
    """

    name: str
    layer: DenseLayer | ConvLayer
    merge: Merge
    z: Shape


def sites(config: Config) -> list[Site]:
    """Every stochastic layer, from the data up."""
    layers = expanded(config)
    size = config.shape[1:]
    return [
        Site(
            f"z{i}",
            layer,
            merge_name(layer, config, top=i == len(layers)),
            (channels(layer), *space(layer, size)),
        )
        for i, layer in enumerate(layers, start=1)
    ]


def gain(config: Config) -> float:
    """1/sqrt(N) for N layers: keeps the variance of a residual stream from growing with depth."""
    return 1.0 / math.sqrt(len(expanded(config)))


def head(features: Shape, n: int, config: Config) -> ConditionalNormal:
    """The affine map from features to a Gaussian with `n` channels."""
    axes = len(features) - 1
    net = convolution(features[0], 2 * n, axes) if axes else nn.Linear(features[0], 2 * n)
    return ConditionalNormal(net, config.scale)


def rung(below: Shape, site: Site, config: Config) -> tuple[nn.Module, Shape]:
    """One step of the upward pass, and the shape of what the step above reads."""
    h = _up_shape(below, site)
    n = site.z[0]
    if config.inference == "ladder":
        evidence = _evidence(h, n, site, config)
        return FeatureRung(_up(below, site, config), evidence), h
    drawn = n if config.inference == "bottom_up" else n // 2
    posterior = head(h, drawn, config)
    kl = config.kl if config.inference == "bottom_up" else "sampled"
    draws = DrawnRung(_up(below, site, config), posterior, DRAWS[kl])
    read = (drawn + h[0], *h[1:])
    if config.inference == "bottom_up":
        return draws, read
    return BothRung(draws, _evidence(read, n - drawn, site, config)), read


def _evidence(features: Shape, n: int, site: Site, config: Config) -> nn.Module:
    """A Gaussian where the merge takes one, else the features as they are."""
    gaussian = site.merge in ("direct", "precision_weighted")
    return head(features, n, config) if gaussian else nn.Identity()


def _up_shape(below: Shape, site: Site) -> Shape:
    if isinstance(site.layer, ConvLayer):
        return (site.layer.width, *site.z[1:])
    return (site.layer.hidden[-1] if site.layer.hidden else math.prod(below),)


def _up(below: Shape, site: Site, config: Config) -> nn.Module:
    layer = site.layer
    if isinstance(layer, DenseLayer):
        net = mlp(math.prod(below), layer.hidden, config.activation)
        return nn.Sequential(nn.Flatten(), net) if len(below) > 1 else net
    factors = [a // b for a, b in zip(below[1:], site.z[1:], strict=True)]
    return nn.Sequential(
        shrink(below[0], layer.width, factors),
        *blocks(layer.blocks, layer.width, len(factors), config.activation, gain(config)),
    )


def start(top: Site, config: Config) -> Shape:
    """Shape of the state above the top layer; without channels if nothing flows from there."""
    if config.top != "constant" and state_name(config) == "markov":
        return (0, *top.z[1:])
    if isinstance(top.layer, ConvLayer):
        return (top.layer.width, *top.z[1:])
    return (top.layer.hidden[-1] if top.layer.hidden else top.z[0],)


def stochastic_layer(
    site: Site, above: Site | None, state: Shape, features: Shape, config: Config
) -> tuple[StochasticLayer, Shape]:
    """A layer of the top-down pass, and the shape of the state it leaves.

    Args:
        site: The layer.
        above: The one above it; `None` at the top.
        state: Shape of the state it is given.
        features: Shape of what the upward pass knows here.
        config: The declaration.
    """
    h = state if above is None else down_shape(state, above, site)
    prior = _prior(h, site, above is None, config)
    transition = nn.Identity() if above is None else down(state, above, config, site)
    merge = Direct() if config.inference == "bottom_up" else _merge(h, features, site, config)
    combine, left = _combine(h, site, config)
    return StochasticLayer(transition, prior, merge, combine), left


def _prior(h: Shape, site: Site, top: bool, config: Config) -> nn.Module:
    if not top or config.top == "constant":
        return head(h, site.z[0], config)
    return (StandardNormal if config.top == "standard" else LearnedNormal)(*site.z)


def _merge(h: Shape, features: Shape, site: Site, config: Config) -> nn.Module:
    both_ways = config.inference == "bidirectional"
    n = site.z[0] - site.z[0] // 2 if both_ways else site.z[0]
    merge: nn.Module
    if site.merge in ("direct", "precision_weighted"):
        merge = Direct() if site.merge == "direct" else PrecisionWeighted()
    else:
        net = _joint(h[0] + features[0], n, site, config)
        merge = Concat(net) if site.merge == "concat" else ResidualNormal(net)
    return Bidirectional(merge) if both_ways else merge


def _joint(width: int, n: int, site: Site, config: Config) -> nn.Module:
    """A network on features from above and below, as deep as one block of its layer."""
    layer, axes = site.layer, len(site.z) - 1
    if isinstance(layer, DenseLayer):
        hidden = layer.hidden[-1:]
        last = head((hidden[0] if hidden else width,), n, config)
        return nn.Sequential(mlp(width, hidden, config.activation), last)
    if layer.blocks == 0:
        return head((width, *site.z[1:]), n, config)
    return nn.Sequential(
        convolution(width, layer.width, axes, kernel=1),
        *blocks(1, layer.width, axes, config.activation, gain(config)),
        head((layer.width, *site.z[1:]), n, config),
    )


def _combine(h: Shape, site: Site, config: Config) -> tuple[nn.Module, Shape]:
    kind, axes = state_name(config), len(site.z) - 1
    if kind == "markov":
        return Markov(), site.z
    if kind == "skip":
        width = h[0] + site.z[0]
        return Skip(convolution(width, h[0], axes) if axes else nn.Linear(width, h[0])), h
    net = convolution(site.z[0], h[0], axes, 1) if axes else nn.Linear(site.z[0], h[0])
    return Residual(scaled(net, gain(config))), h


def down_shape(state: Shape, above: Site, site: Site | None = None) -> Shape:
    """Shape of what the network down from a layer gives: for a layer, or for the likelihood."""
    if site is not None and isinstance(site.layer, ConvLayer):
        return (site.layer.width, *site.z[1:])
    if isinstance(above.layer, ConvLayer):
        return (above.layer.width, *above.z[1:])
    return (above.layer.hidden[0] if above.layer.hidden else state[0],)


def down(state: Shape, above: Site, config: Config, site: Site | None = None) -> nn.Module:
    """The network from the state that a layer leaves down to the next, or to the likelihood."""
    layer = above.layer
    shape = down_shape(state, above, site)
    if isinstance(layer, DenseLayer):
        net = mlp(state[0], layer.hidden[::-1], config.activation)
        if len(shape) == 1:
            return net
        width = layer.hidden[0] if layer.hidden else state[0]
        return nn.Sequential(net, nn.Linear(width, math.prod(shape)), nn.Unflatten(1, shape))
    axes = len(above.z) - 1
    begin = [convolution(state[0], layer.width, axes)] if state[0] != layer.width else []
    factors = [a // b for a, b in zip(shape[1:], above.z[1:], strict=True)]
    return nn.Sequential(
        *begin,
        *blocks(layer.blocks, layer.width, axes, config.activation, gain(config)),
        grow(layer.width, shape[0], factors),
    )
