"""From the model section to the convolutional Ladder VAE."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ladder.distributions import Normal, Sampled
from ladder.inference import BottomUp, FeatureRung
from ladder.layers import StochasticLayer
from ladder.likelihoods import make_head
from ladder.model import Constant, HierarchicalVAE, TopDown
from ladder.nets import Crop, Pad
from ladder.priors import ConditionalNormal
from ladder.systems.lvae_conv.config import Config, LayerSpec
from ladder.systems.lvae_conv.parts import (
    NONLINEARITIES,
    Descend,
    Here,
    Mix,
    Posterior,
    ResidualBlock,
    blocks,
    double,
    halve,
)

ESTIMATORS: dict[str, type[Normal]] = {"sampled": Sampled, "closed_form": Normal}


def build(config: Config) -> HierarchicalVAE:
    """Build the model with freshly initialised weights."""
    return HierarchicalVAE(_bottom_up(config), _top_down(config), _likelihood(config))


def _bottom_up(config: Config) -> BottomUp:
    rungs = {
        f"z{i}": FeatureRung(blocks(config, spec.downsample, halve), nn.Identity())
        for i, spec in enumerate(config.stack, start=1)
    }
    stride = 2 if config.initial_downscaling else 1
    stem = nn.Sequential(
        OrderedDict(
            pad=Pad(config.shape[1:], config.padded),
            conv=nn.Conv2d(config.shape[0], config.filters, 5, stride, padding=2),
            act=NONLINEARITIES[config.activation](),
            block=ResidualBlock(config, gated=False),
        )
    )
    return BottomUp(rungs, stem)


def _top_down(config: Config) -> TopDown:
    *lower, top = config.stack
    layers = {f"z{len(lower) + 1}": _top(top, config)}
    for i, spec in reversed(list(enumerate(lower, start=1))):
        layers[f"z{i}"] = _layer(spec, config)
    extent = [n // config.factor for n in config.padded]
    start = Constant(2 * top.channels, *extent, learned=config.learn_top_prior)
    return TopDown(start, layers, _finish(config))


def _top(spec: LayerSpec, config: Config) -> StochasticLayer:
    prior = ConditionalNormal(nn.Identity())  # the state above holds its parameters
    return _stochastic(spec, config, prior, Here(), Here())


def _layer(spec: LayerSpec, config: Config) -> StochasticLayer:
    prior = ConditionalNormal(_conv(config.filters, 2 * spec.channels))
    skip = Mix(config) if config.skip else Here()
    return _stochastic(spec, config, prior, Mix(config, config.merge == "linear"), skip)


def _stochastic(
    spec: LayerSpec, config: Config, prior: nn.Module, merge: nn.Module, skip: nn.Module
) -> StochasticLayer:
    normal = ConditionalNormal(_conv(config.filters, 2 * spec.channels))
    posterior = Posterior(merge, normal, ESTIMATORS[config.kl])
    net = blocks(config, spec.downsample, double)
    combine = Descend(_conv(spec.channels, config.filters), skip, net)
    return StochasticLayer(nn.Identity(), prior, posterior, combine)


def _finish(config: Config) -> nn.Sequential:
    resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(
        OrderedDict(
            resize=resize if config.initial_downscaling else nn.Identity(),
            blocks=blocks(config),
            crop=Crop(config.shape[1:], config.padded),
        )
    )


def _likelihood(config: Config) -> nn.Sequential:
    head = make_head(config.likelihood)
    conv = _conv(config.filters, head.raw_channels(config.shape[0]))
    return nn.Sequential(OrderedDict(conv=conv, head=head))


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)
