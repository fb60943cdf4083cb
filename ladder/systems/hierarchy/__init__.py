"""Declared hierarchies: any number of stochastic layers, listed from the data up.

Generative model:            p(z_L) prod_l p(z_l | state_{l+1}) p(x | state_1)
Inference, `bottom_up`:      q(z_1 | x) prod_l q(z_l | z_{l-1}, h_{l-1}), drawn going up
           `ladder`:         prod_l q(z_l | state_{l+1}, d_l(x)), drawn going down
           `bidirectional`:  z_l = [z_l^TD, z_l^BU], one part drawn in each of these ways

where h_l and d_l are deterministic features of the upward pass. The generative model is the same
for all three. State: what flows down, z alone (`markov`) or a stream of all z above (`residual`,
`skip`). Evidence: a posterior drawn going up, a Gaussian, or features, as the merge needs.

`declared.py` holds the fields and what is impossible about them, `parts.py` the modules; this
file puts them together. The documented two-layer model is the preset `mnist_2layer`. Differences
from its code:

* one affine map emits mean and log-variance together, so a weight copied from there is two
  matrices stacked; the function and the initial distribution are the same;
* the likelihood is computed from logits, which is the same cross-entropy without the clamp of
  log at -100 that a sigmoid needs.
"""

from __future__ import annotations

import math

from torch import nn

from ladder.inference import BottomUp
from ladder.likelihoods import make_head
from ladder.model import Constant, HierarchicalVAE, TopDown
from ladder.nets import Crop, Pad, convolution, grow
from ladder.systems.hierarchy.declared import Config as Config
from ladder.systems.hierarchy.declared import ConvLayer, padded
from ladder.systems.hierarchy.parts import (
    Shape,
    Site,
    down,
    down_shape,
    rung,
    sites,
    start,
    stochastic_layer,
)


def build(config: Config) -> HierarchicalVAE:
    """Build the declared hierarchy with freshly initialised weights."""
    places = sites(config)
    bottom_up, features = _bottom_up(places, config)
    top_down, shape = _top_down(places, features, config)
    return HierarchicalVAE(bottom_up, top_down, _likelihood(shape, config))


def _bottom_up(places: list[Site], config: Config) -> tuple[BottomUp, list[Shape]]:
    """The upward pass, and the shape of what it knows at each layer."""
    stem: nn.Module = nn.Flatten()
    below: Shape = (math.prod(config.shape),)
    if isinstance(places[0].layer, ConvLayer):
        stem = Pad(config.shape[1:], padded(config))
        below = (config.shape[0], *padded(config))
    rungs: dict[str, nn.Module] = {}
    features: list[Shape] = []
    for site in places:
        rungs[site.name], below = rung(below, site, config)
        features.append(below)
    return BottomUp(rungs, stem), features


def _top_down(places: list[Site], features: list[Shape], config: Config) -> tuple[TopDown, Shape]:
    """The generative path, and the shape of the features it ends in."""
    state = start(places[-1], config)
    above: Site | None = None
    constant = Constant(*state, learned=config.top == "constant")
    if config.top == "constant":
        nn.init.normal_(constant.value)  # at zero, what reads it would have no gradient
    layers: dict[str, nn.Module] = {}
    for site, known in zip(reversed(places), reversed(features), strict=True):
        layers[site.name], state = stochastic_layer(site, above, state, known, config)
        above = site
    finish, shape = _finish(state, places[0], config)
    return TopDown(constant, layers, finish), shape


def _finish(state: Shape, bottom: Site, config: Config) -> tuple[nn.Module, Shape]:
    """From the lowest state to features; those of a convolutional model have the data's space."""
    net, shape = down(state, bottom, config), down_shape(state, bottom)
    if len(shape) == 1:
        return net, shape
    size, full = config.shape[1:], padded(config)
    factors = [a // b for a, b in zip(full, bottom.z[1:], strict=True)]
    net = nn.Sequential(net, grow(shape[0], shape[0], factors), Crop(size, full))
    return net, (shape[0], *size)


def _likelihood(features: Shape, config: Config) -> nn.Sequential:
    likelihood = make_head(config.likelihood)
    channels, *space = config.shape
    raw = likelihood.raw_channels(channels)
    if len(features) > 1:
        return nn.Sequential(convolution(features[0], raw, len(space)), likelihood)
    shape = (raw, *space)
    return nn.Sequential(
        nn.Linear(features[0], math.prod(shape)), nn.Unflatten(1, shape), likelihood
    )
