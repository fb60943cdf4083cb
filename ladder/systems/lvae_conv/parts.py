"""Blocks of the convolutional Ladder VAE."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ladder.batchnorm import BatchNorm2d
from ladder.convolutions import Conv2d
from ladder.distributions import Normal
from ladder.nets import ACTIVATIONS
from ladder.systems.lvae_conv.config import Config

NONLINEARITIES: dict[str, type[nn.Module]] = {**ACTIVATIONS, "selu": nn.SELU}
LETTERS = {"a": "act", "b": "norm", "c": "conv", "d": "drop"}


class Gate(nn.Module):
    """act(u) * sigmoid(g), where [u, g] is a 1x1 convolution of the input."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv = Conv2d(width, 2 * width, 1)
        self.activation = NONLINEARITIES[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, H, W]` to the same shape."""
        u, g = self.conv(x).chunk(2, dim=1)
        gated: Tensor = self.activation(u) * torch.sigmoid(g)
        return gated


def spell(word: str) -> list[str]:
    """Names of a block's modules: `bacdbacd` is norm1, act1, conv1, drop1, norm2, ..."""
    seen: Counter[str] = Counter()
    names = []
    for letter in word:
        seen[letter] += 1
        names.append(f"{LETTERS[letter]}{seen[letter]}")
    return names


class ResidualBlock(nn.Module):
    """x + f(x), f spelled by `config.block`.

    Args:
        config: The model section.
        gated: Whether f ends with a gate.
    """

    def __init__(self, config: Config, gated: bool) -> None:
        super().__init__()
        width = config.filters
        make: dict[str, Callable[[], nn.Module]] = {
            "a": NONLINEARITIES[config.activation],
            "b": lambda: BatchNorm2d(width),
            "c": lambda: nn.Conv2d(width, width, 3, padding=1),
            "d": lambda: nn.Dropout2d(config.dropout),
        }
        modules = OrderedDict(
            (name, make[letter]())
            for name, letter in zip(spell(config.block), config.block, strict=True)
            if letter != "b" or config.batch_norm
        )
        if gated:
            modules["gate"] = Gate(width, config.activation)
        self.f = nn.Sequential(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, filters, H, W]` to the same shape."""
        change: Tensor = self.f(x)
        return x + change


def halve(width: int) -> nn.Conv2d:
    """`[B, width, H, W]` to `[B, width, H/2, W/2]`, for even H and W."""
    return nn.Conv2d(width, width, 3, stride=2, padding=1)


def double(width: int) -> nn.ConvTranspose2d:
    """`[B, width, H, W]` to `[B, width, 2H, 2W]`."""
    return nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)


def blocks(
    config: Config, times: int = 0, resample: Callable[[int], nn.Module] = halve
) -> nn.Sequential:
    """A layer's residual blocks, the first `times` of which resample before anything else."""
    steps = []
    for i in range(config.blocks_per_layer):
        step: OrderedDict[str, nn.Module] = OrderedDict()
        if i < times:
            step["resample"] = resample(config.filters)
        step["block"] = ResidualBlock(config, config.gated)
        steps.append(nn.Sequential(step))
    return nn.Sequential(*steps)


class Mix(nn.Module):
    """Two maps to one: a 1x1 convolution of both, then a gated residual block unless `linear`.

    Args:
        config: The model section.
        linear: Whether there is no residual block.
    """

    def __init__(self, config: Config, linear: bool = False) -> None:
        super().__init__()
        self.conv = Conv2d(2 * config.filters, config.filters, 1)
        self.block = nn.Identity() if linear else ResidualBlock(config, gated=True)

    def forward(self, here: Tensor, above: Tensor) -> Tensor:
        """Map two of `[B, filters, H, W]` to one."""
        mixed: Tensor = self.block(self.conv(torch.cat([here, above], dim=1)))
        return mixed


class Here(nn.Module):
    """What stands for `Mix` where nothing above is looked at."""

    def forward(self, here: Tensor, above: Tensor) -> Tensor:
        """Return the first map."""
        return here


class Posterior(nn.Module):
    """q(z | b, t): the merge of the upward features with the state above.

    Args:
        mix: `(b, t) -> features`.
        normal: `features -> Normal`.
        estimator: `Normal`, with the closed-form KL, or `Sampled`.
    """

    def __init__(self, mix: nn.Module, normal: nn.Module, estimator: type[Normal]) -> None:
        super().__init__()
        self.mix = mix
        self.normal = normal
        self.estimator = estimator

    def forward(self, h: Tensor, evidence: Tensor, p: Normal) -> Normal:
        """Return the posterior of z; the prior has no say."""
        q: Normal = self.normal(self.mix(evidence, h))
        return self.estimator(q.mean, q.log_scale)


class Descend(nn.Module):
    """Combine: z, mixed with the state above, through the layer's blocks to the layer below.

    Args:
        widen: `z -> features`.
        mix: `(features, t) -> features`.
        net: `features -> t` at the resolution of the layer below.
    """

    def __init__(self, widen: nn.Module, mix: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.widen = widen
        self.mix = mix
        self.net = net

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return the state for the layer below."""
        state: Tensor = self.net(self.mix(self.widen(z), h))
        return state
