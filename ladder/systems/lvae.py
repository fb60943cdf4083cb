"""The Ladder VAE of dense layers (Sønderby, Raiko, Maaløe, Sønderby & Winther 2016).

Paper: Ladder Variational Autoencoders, https://arxiv.org/abs/1602.02282; inference by a ladder and
by a bottom-up chain, the paper's baseline, over the same generative model:

    p(z_L) = N(0, I),  p(z_i | z_i+1) = N of MLP(z_i+1),  p(x | z_1) = Bernoulli of MLP(z_1)
    ladder:     d_i = MLP(d_i-1) and its Gaussian N(m', v');  q(z_L | x) is that of d_L, and
                q(z_i | z_i+1, x) its product with a Gaussian N(m", v") of MLP(z_i+1):
                1/v = 1/v' + 1/v",  m = v (m'/v' + m"/v")
    bottom_up:  q(z_1 | x) prod_i q(z_i | z_i-1), each N of MLP(z_i-1), drawn going up

Every dense layer of an MLP is affine, batch norm, leaky rectifier; means and variances are affine
and batch norm, the variance then softplus; only the map to x has no batch norm. State: z of the
layer above, `[B, dim]`; above the top it is empty. Evidence: a `Normal` going down to the merge
(ladder), or the posterior already drawn (bottom_up).

With `share`, N(m", v") is the prior itself, as the paper writes it. The published commands turn
sharing off: the prior is then of a network of its own, as wide as layer i. They also let d_i+1
read the mean m' where the paper's equations have d_i (`only_mu_up`).

Differences from the released code:

* batch norm evaluates with running averages of the batch statistics (momentum 0.1). The released
  code pushes the whole training set through before each evaluation and keeps its statistics;
  `torch.optim.swa_utils.update_bn(batches, model)` does the same to a trained model;
* the variance has its floor of 1e-5 everywhere; released, the density has it and the draw and the
  merge do not;
* ladder inference takes the KL in closed form, not at the sample: the same mean, less variance;
* the likelihood is computed from logits; released, the mean is clipped to [1e-5, 1 - 1e-5];
* means and variances come from one affine map: two of the released matrices stacked, each half
  initialised by itself;
* Adam adds epsilon to the square root of the bias-corrected second moment; released, of the
  uncorrected one, which differs in the first thousand steps only;
* the gradient is rescaled by min(1, 4 / (norm + 1e-6)), not min(norm, 4) / (norm + 1e-7); the clip
  of its elements comes after that in both;
* the warm-up rises with every step, and is as high at the end of an epoch as it is released in the
  next one; and the last batch of an epoch, of 96 images, is used and not dropped;
* one sample per datum while training; the importance-weighted objective is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.batchnorm import BatchNorm1d
from ladder.config import Count, ModelConfig, Settings
from ladder.distributions import Drawn, Normal, at_least_float32
from ladder.inference import BottomUp, Drawing
from ladder.layers import Markov, StochasticLayer
from ladder.likelihoods import BernoulliHead
from ladder.merges import Direct, PrecisionWeighted
from ladder.model import Constant, HierarchicalVAE, TopDown
from ladder.nets import ACTIVATIONS
from ladder.priors import StandardNormal

FLOOR = 1e-5  # of every variance
EPSILON = 1e-10  # of batch norm, added to the variance

glorot_uniform, glorot_normal = nn.init.xavier_uniform_, nn.init.xavier_normal_


class LayerSpec(Settings):
    """One stochastic layer."""

    dim: Count
    """Number of latent units."""
    hidden: Count
    """Width of the network between this layer and what lies below it."""


class Config(ModelConfig):
    """A Ladder VAE of dense layers."""

    system: Literal["lvae"] = "lvae"
    """The published Ladder VAE and its bottom-up baseline."""
    inference: Literal["ladder", "bottom_up"] = "ladder"
    """Posteriors from a deterministic upward pass and the top-down pass, or drawn going up."""
    share: bool = True
    """Ladder: the prior and the posterior use one network from z_i+1 (the paper), or each its own
    (the published commands)."""
    only_mu_up: bool = True
    """Ladder: the next layer up reads the mean of this one's Gaussian (released default), or its
    features (the paper's equations)."""
    blocks: Count = 2
    """Dense layers of each network."""
    batch_norm: bool = True
    """Batch norm after every affine map but the decoder's last."""
    activation: Literal["leaky_relu", "relu", "elu", "tanh"] = "leaky_relu"
    """Nonlinearity of the dense layers; leaky_relu has slope 0.01."""
    likelihood: Literal["bernoulli"] = "bernoulli"
    """p(x | z_1)."""
    layers: Annotated[list[LayerSpec], Field(min_length=1)]
    """Stochastic layers, from the data up."""

    @model_validator(mode="after")
    def _shares_what_there_is(self) -> Config:
        if self.inference == "bottom_up" and not self.share:
            raise ValueError(
                "'share: false' goes with 'inference: ladder'; bottom_up has no top-down "
                "networks of its own"
            )
        return self


class GaussianHead(nn.Module):
    """N(mean, softplus(raw) + 1e-5) of features, in float32 or better.

    Args:
        net: Map to twice the latent's units, on axis 1: means, then raw variances.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor) -> Normal:
        """Map features `[B, C]` to a Gaussian over `[B, dim]`."""
        mean, raw = at_least_float32(self.net(h)).chunk(2, dim=1)
        return Normal(mean, 0.5 * (F.softplus(raw) + FLOOR).log())


class DrawnRung(Drawing):
    """Bottom-up inference, q(z_i | z_i-1): the rung above reads the draw and nothing else.

    Args:
        net: `below -> h`.
        posterior: `h -> Normal`.
    """

    def __init__(self, net: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.posterior = posterior

    def prepare(self, below: Tensor) -> Normal:
        """Return the posterior."""
        q: Normal = self.posterior(self.net(below))
        return q

    def draw(self, prepared: Normal) -> tuple[Tensor, Drawn]:
        """Return z_i, `[B, dim]`, and its posterior."""
        z = prepared.rsample()
        return z, Drawn(prepared, z)


class LadderRung(nn.Module):
    """One step of the deterministic upward pass: d_i and the Gaussian that it gives.

    Args:
        net: `below -> d_i`.
        evidence: `d_i -> Normal`.
        only_mu_up: Whether the rung above reads the Gaussian's mean, not d_i.
    """

    def __init__(self, net: nn.Module, evidence: nn.Module, only_mu_up: bool) -> None:
        super().__init__()
        self.net = net
        self.evidence = evidence
        self.only_mu_up = only_mu_up

    def forward(self, below: Tensor) -> tuple[Tensor, Normal]:
        """Return what the rung above reads, and the evidence."""
        d = self.net(below)
        evidence = self.evidence(d)
        return evidence.mean if self.only_mu_up else d, evidence


class OwnTopDown(nn.Module):
    """Merge without sharing: the evidence times a Gaussian of the posterior's own network.

    Args:
        top_down: `z_i+1 -> Normal`.
    """

    def __init__(self, top_down: nn.Module) -> None:
        super().__init__()
        self.top_down = top_down
        self.product = PrecisionWeighted()

    def forward(self, h: Tensor, evidence: Normal, p: Normal) -> Normal:
        """Return q(z_i | z_i+1, x); `h` is z_i+1, and the prior has no say."""
        q: Normal = self.product(h, evidence, self.top_down(h))
        return q


def build(config: Config) -> HierarchicalVAE:
    """Build the model with freshly initialised weights."""
    width, shape = config.layers[0].hidden, config.shape
    logits = affine(width, math.prod(shape), glorot_normal)
    likelihood = nn.Sequential(logits, nn.Unflatten(1, shape), BernoulliHead())
    return HierarchicalVAE(_bottom_up(config), _top_down(config), likelihood)


def _bottom_up(config: Config) -> BottomUp:
    rungs: dict[str, nn.Module] = {}
    below = math.prod(config.shape)
    for i, spec in enumerate(config.layers, start=1):
        net, head = mlp(below, spec.hidden, config), gaussian(spec.hidden, spec.dim, config)
        ladder = config.inference == "ladder"
        rungs[f"z{i}"] = (
            LadderRung(net, head, config.only_mu_up) if ladder else DrawnRung(net, head)
        )
        below = spec.hidden if ladder and not config.only_mu_up else spec.dim
    return BottomUp(rungs, nn.Flatten())


def _top_down(config: Config) -> TopDown:
    *lower, top = config.layers
    layers = {
        f"z{len(config.layers)}": StochasticLayer(
            nn.Identity(), StandardNormal(top.dim), Direct(), Markov()
        )
    }
    above = top
    for i, spec in reversed(list(enumerate(lower, start=1))):
        layers[f"z{i}"] = _layer(spec, above, config)
        above = spec
    return TopDown(Constant(0), layers, mlp(above.dim, above.hidden, config))


def _layer(spec: LayerSpec, above: LayerSpec, config: Config) -> StochasticLayer:
    net = mlp(above.dim, above.hidden, config)
    head = gaussian(above.hidden, spec.dim, config)
    if config.inference == "bottom_up":
        return StochasticLayer(net, head, Direct(), Markov())
    if config.share:
        return StochasticLayer(net, head, PrecisionWeighted(), Markov())
    prior = nn.Sequential(
        mlp(above.dim, spec.hidden, config), gaussian(spec.hidden, spec.dim, config)
    )
    return StochasticLayer(nn.Identity(), prior, OwnTopDown(nn.Sequential(net, head)), Markov())


def mlp(fan_in: int, width: int, config: Config) -> nn.Sequential:
    """Dense layers of one width: affine, batch norm, nonlinearity; `[B, fan_in] -> [B, width]`."""
    init = partial(glorot_normal, gain=math.sqrt(2.0))
    layers: list[nn.Module] = []
    for _ in range(config.blocks):
        layers += [affine(fan_in, width, init), *_norm(width, config)]
        layers += [ACTIVATIONS[config.activation]()]
        fan_in = width
    return nn.Sequential(*layers)


def gaussian(fan_in: int, dim: int, config: Config) -> GaussianHead:
    """Mean and variance of a layer: affine and batch norm; `[B, fan_in] -> Normal`."""
    init = glorot_uniform if config.inference == "ladder" else glorot_normal

    def halves(weight: Tensor) -> None:
        for half in weight.chunk(2):  # so that each has the fan-out it has by itself
            init(half)

    both = affine(fan_in, 2 * dim, halves)
    with torch.no_grad():
        both.bias[dim:].fill_(1.0)  # raw variances; batch norm cancels it
    return GaussianHead(nn.Sequential(both, *_norm(2 * dim, config)))


def affine(fan_in: int, fan_out: int, init: Callable[[Tensor], Any]) -> nn.Linear:
    """An affine map with weights from `init` and no bias at first."""
    layer = nn.Linear(fan_in, fan_out)
    init(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _norm(width: int, config: Config) -> list[nn.Module]:
    return [BatchNorm1d(width, eps=EPSILON)] if config.batch_norm else []
