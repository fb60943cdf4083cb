"""The very deep VAE: its layer, its two passes, and how they are built."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.convolutions import Conv2d
from ladder.distributions import Normal, at_least_float32
from ladder.latent import Latent, draw
from ladder.likelihoods import make_head
from ladder.model import HierarchicalVAE, TopDown, Upward
from ladder.nets import scaled
from ladder.systems.vdvae.config import Config

Maps = dict[int, Tensor]


class Bottleneck(nn.Module):
    """Four convolutions, each after a GELU: 1x1 in, two 3x3 (1x1 on tiny maps), 1x1 out.

    Args:
        channels: Of the input.
        inner: Channels between the convolutions.
        out: Of the output.
        resolution: Of the maps; 3x3 would see only padding where it is 1 or 2.
        gain: Factor on the initial weights of the last convolution.
    """

    def __init__(
        self, channels: int, inner: int, out: int, resolution: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        kernel = 3 if resolution > 2 else 1
        self.c1 = conv(channels, inner, 1)
        self.c2 = conv(inner, inner, kernel)
        self.c3 = conv(inner, inner, kernel)
        self.c4 = scaled(conv(inner, out, 1), gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, r, r]` to `[B, out, r, r]`."""
        for convolution in (self.c1, self.c2, self.c3, self.c4):
            x = convolution(F.gelu(x))
        return x


def conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the resolution, with a bias of zero at first."""
    module = Conv2d(channels, out, kernel, padding=kernel // 2)
    assert module.bias is not None
    nn.init.zeros_(module.bias)
    return module


class Layer(nn.Module):
    """One z of the top-down path.

    Args:
        config: The model section.
        i: The layer's scale.
        mix: Resolution of the map that is added, enlarged; `None` for none.
    """

    def __init__(self, config: Config, i: int, mix: int | None) -> None:
        super().__init__()
        r, width, gain = config.scales[i].resolution, config.width_at(i), config.layers**-0.5
        inner, z = config.inner(width), config.zdim
        self.posterior = Bottleneck(2 * width, inner, 2 * z, r)
        self.prior = Bottleneck(width, inner, 2 * z + width, r, gain=0.0)
        self.z_proj = scaled(conv(z, width, 1), gain)
        self.resnet = Bottleneck(width, inner, width, r, gain)
        self.resolution, self.mix, self.zdim = r, mix, z

    def forward(
        self,
        state: Maps,
        evidence: Tensor | None = None,
        z: Tensor | None = None,
        temperature: float | Tensor = 1.0,
    ) -> tuple[Maps, Latent]:
        """Turn the maps above into the maps below; see `StochasticLayer.forward`."""
        x = self.mixed(state)
        q = None if evidence is None else normal(self.posterior(torch.cat([x, evidence], dim=1)))
        parameters, residual = self.prior(x).tensor_split([2 * self.zdim], dim=1)
        latent = draw(normal(parameters), q, z, temperature)
        x = x + residual + self.z_proj(latent.z.to(residual.dtype))
        return {**state, self.resolution: x + self.resnet(x)}, latent

    def mixed(self, state: Maps) -> Tensor:
        """The layer's map, and on it the first channels of a smaller one, enlarged."""
        x = state[self.resolution]
        if self.mix is None:
            return x
        small = state[self.mix][:, : x.shape[1]]
        return x + F.interpolate(small, scale_factor=self.resolution // self.mix)


def normal(parameters: Tensor) -> Normal:
    """Means, then log-scales, on axis 1."""
    return Normal(*at_least_float32(parameters).chunk(2, dim=1))


class Residual(nn.Module):
    """x + block(x), then the mean over patches, then zeros as further channels.

    Args:
        block: Keeps the shape.
        pool: Height and width of a patch; 1 keeps the resolution.
        wider: Channels that are added.
    """

    def __init__(self, block: nn.Module, pool: int = 1, wider: int = 0) -> None:
        super().__init__()
        self.block = block
        self.pool, self.wider = pool, wider

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, width, r, r]` to `[B, width + wider, r / pool, r / pool]`."""
        x = x + self.block(x)
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        return F.pad(x, (0, 0, 0, 0, 0, self.wider)) if self.wider else x


class BottomUp(Upward):
    """The upward pass: residual blocks, and one activation for all layers of a resolution.

    Args:
        config: The model section.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = conv(config.shape[0], config.width_at(0), 3)
        self.blocks = nn.ModuleList(_encoder_blocks(config))
        # How many blocks have been passed where a resolution has its last activation.
        self.last: dict[int, list[str]] = {}
        names = iter(f"z{i}" for i in range(1, config.layers + 1))
        passed = 0
        for scale in config.scales:
            passed += scale.encoder_blocks
            top = scale is config.scales[-1]
            self.last[passed - (not top)] = [next(names) for _ in range(scale.layers)]
        self.mean, self.std = config.normalize.mean / 255, config.normalize.std / 255

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Climb from `x`, `[B, C, size, size]` in [0, 1]; evidence by layer name."""
        # The sum of all blocks is float32 under autocast too, as it is going down.
        h = at_least_float32(self.stem((x - self.mean) / self.std))
        evidence = dict.fromkeys(self.last.get(0, []), h)
        for passed, block in enumerate(self.blocks, start=1):
            h = self.call(block, h)
            evidence |= dict.fromkeys(self.last.get(passed, []), h)
        return evidence


class Start(nn.Module):
    """The maps above the top layer: learned where they are small, else zero.

    Args:
        config: The model section.
    """

    empty: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.widths = {
            scale.resolution: config.width_at(i)
            for i, scale in enumerate(config.scales)
            if scale.layers
        }
        learned = [r for r in sorted(self.widths) if r <= config.no_bias_above]
        # Pairs, because a mapping would be sorted by its keys as words.
        maps = [(str(r), nn.Parameter(torch.zeros(1, self.widths[r], r, r))) for r in learned]
        self.maps = nn.ParameterDict(maps)
        self.register_buffer("empty", torch.zeros(0), persistent=False)  # knows device and dtype

    def forward(self, n: int) -> Maps:
        """Return the maps for `n` data."""
        zero = self.empty.new_zeros(1, 1, 1, 1)
        maps = [(r, width, self.maps.get(str(r), zero)) for r, width in self.widths.items()]
        return {r: first.expand(n, width, r, r) for r, width, first in maps}


class Finish(nn.Module):
    """The map at the resolution of the data, scaled and shifted channel by channel.

    Args:
        config: The model section.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.resolution, width = config.scales[0].resolution, config.width_at(0)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, state: Maps) -> Tensor:
        """Return features for the likelihood, `[B, width, size, size]`."""
        return state[self.resolution] * self.gain + self.bias


def build(config: Config) -> HierarchicalVAE:
    """Build the model; its weights are drawn in the order of the released code."""
    bottom_up = BottomUp(config)
    top_down = TopDown(Start(config), _layers(config), Finish(config))
    head = make_head(config.likelihood)
    raw = conv(config.width_at(0), head.raw_channels(config.shape[0]), 1)
    return HierarchicalVAE(bottom_up, top_down, nn.Sequential(OrderedDict(conv=raw, head=head)))


def _encoder_blocks(config: Config) -> Iterator[Residual]:
    gain = config.encoder_blocks**-0.5 if config.encoder_blocks else 1.0
    for i, scale in enumerate(config.scales):
        width = config.width_at(i)
        for left in reversed(range(scale.encoder_blocks)):
            inner = config.inner(width)
            block = Bottleneck(width, inner, width, scale.resolution, gain)
            if left or i == len(config.scales) - 1:
                yield Residual(block)
            else:
                pool = scale.resolution // config.scales[i + 1].resolution
                yield Residual(block, pool, config.width_at(i + 1) - width)


def _layers(config: Config) -> dict[str, Layer]:
    plan = [
        (i, mix)
        for i, scale in reversed(list(enumerate(config.scales)))
        for mix in [config.mixed(i), *[None] * scale.layers][: scale.layers]
    ]
    return {f"z{len(plan) - k}": Layer(config, i, mix) for k, (i, mix) in enumerate(plan)}
