"""The two passes of NVAE, and how they are built."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from ladder.execution import Caller
from ladder.flows import FlowMerge, ShiftFlow
from ladder.layers import StochasticLayer
from ladder.likelihoods import Head, make_head
from ladder.logistics import Bins
from ladder.model import Constant, HierarchicalVAE, TopDown, Upward
from ladder.nets import Crop, Pad
from ladder.systems.nvae.cells import CELLS, Cell, Part, Resample
from ladder.systems.nvae.config import Config
from ladder.systems.nvae.parts import (
    Absolute,
    Combine,
    Combiner,
    Descend,
    Only,
    Prior,
    Relative,
    SoftNormalHead,
    Top,
    TopMerge,
)
from ladder.weightnorm import WeightNormConv2d


class BottomUp(Upward):
    """The upward pass: a stem, then cells; the evidence is what they have come to at a layer.

    Args:
        config: The model section.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pad = Pad(config.shape[1:], config.padded)
        self.bins = Bins(config.bits)
        self.stem = WeightNormConv2d(config.shape[0], config.channels, 3)
        self.cells = nn.ModuleList(_upward_cells(config))
        # How many cells have been passed where a layer has its evidence.
        self.passed = _passed(config)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Climb from `x`, `[B, C, H, W]` in [0, 1]; evidence by layer name."""
        x = self.bins.datum(self.bins.level(x)) if self.bins.bits < 8 else x
        h = self.stem(2.0 * self.pad(x) - 1.0)
        evidence = {name: h for name, passed in self.passed.items() if passed == 0}
        for i, cell in enumerate(self.cells, start=1):
            h = self.call(cell, h)
            evidence |= {name: h for name, passed in self.passed.items() if passed == i}
        return evidence


def _upward_cells(config: Config) -> Iterator[Cell]:
    arrangement, channels = CELLS[config.cells], config.channels

    def cell(parts: list[Part], resample: Resample = "none") -> Cell:
        return Cell(parts, channels, resample, config.squeeze_excitation)

    for _ in range(config.blocks):
        for _ in range(config.preprocess_cells - 1):
            yield cell(arrangement.pre)
        yield cell(arrangement.pre, "down")
        channels *= 2
    for scale, groups in enumerate(config.groups, start=1):
        for _ in range(groups * config.climb):
            yield cell(arrangement.encoder)
        if scale < len(config.groups):
            yield cell(arrangement.encoder, "down")
            channels *= 2


def _passed(config: Config) -> dict[str, int]:
    passed, layers = config.blocks * config.preprocess_cells, iter(range(1, config.layers + 1))
    found = {}
    for groups in config.groups:
        for _ in range(groups):
            passed += config.climb
            found[f"z{next(layers)}"] = passed
        passed += 1  # the cell that halves
    return found


class Finish(Caller):
    """Cells from the lowest latent scale back to the resolution of the data.

    Args:
        config: The model section.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.cells = nn.ModuleList(_last_cells(config))

    def forward(self, state: Tensor) -> Tensor:
        """Return features for the likelihood, `[B, channels, H, W]`."""
        for cell in self.cells:
            state = self.call(cell, state)
        return F.elu(state)


def _last_cells(config: Config) -> Iterator[Cell]:
    parts, gated = CELLS[config.cells].post, config.squeeze_excitation
    for block in reversed(range(config.blocks)):
        channels = config.down_channels * 2**block
        yield Cell(parts, 2 * channels, "up", gated)
        for _ in range(config.postprocess_cells - 1):
            yield Cell(parts, channels, "none", gated)


def build(config: Config) -> HierarchicalVAE:
    """Build the model with freshly initialised weights."""
    return HierarchicalVAE(BottomUp(config), _top_down(config), _likelihood(config))


def _top_down(config: Config) -> TopDown:
    height, width = (extent // config.factor for extent in config.padded)
    layers: dict[str, nn.Module] = {f"z{config.layers}": _top(config)}
    for i, scale, first in _lower(config):
        layers[f"z{i}"] = _layer(config, scale, first)
    if config.layers == 1:
        return TopDown(Constant(0, height, width), layers, Finish(config))
    channels = config.down_channels * config.factor
    start = Constant(channels, height, width, learned=True)
    nn.init.uniform_(start.value)
    return TopDown(start, layers, Finish(config))


def _lower(config: Config) -> Iterator[tuple[int, int, bool]]:
    """Number, latent scale from the data up, and whether it is its scale's first, going down."""
    i, top = config.layers, len(config.groups) - 1
    for scale, groups in reversed(list(enumerate(config.groups))):
        for group in range(groups):
            if i < config.layers:
                yield i, scale, group == 0 and scale < top
            i -= 1


def _top(config: Config) -> StochasticLayer:
    z, channels = config.zdim, config.down_channels * config.factor
    combine = Only(channels, z) if config.layers == 1 else Combine(channels, z)
    merge = TopMerge(config.channels * config.factor, z)
    return StochasticLayer(Top(z), Prior(), _flowing(merge, config), combine)


def _layer(config: Config, scale: int, first: bool) -> StochasticLayer:
    z, factor = config.zdim, 2 ** (config.blocks + scale)
    channels = config.down_channels * factor
    parts, gated = CELLS[config.cells].decoder, config.squeeze_excitation
    up = [Cell(parts, 2 * channels, "up", gated)] if first else []
    rest = [Cell(parts, channels, "none", gated) for _ in range(config.decoder_cells)]
    transition = Descend(nn.Sequential(*up, *rest), channels, z)
    posterior = Relative if config.residual_posterior else Absolute
    merge = posterior(Combiner(config.channels * factor, channels, z))
    return StochasticLayer(transition, Prior(), _flowing(merge, config), Combine(channels, z))


def _flowing(merge: nn.Module, config: Config) -> nn.Module:
    return FlowMerge(merge, ShiftFlow(config.zdim, config.flows)) if config.flows else merge


def _likelihood(config: Config) -> nn.Sequential:
    spec = config.likelihood
    head: Head = SoftNormalHead() if spec.kind == "soft_normal" else make_head(spec)
    raw = head.raw_channels(config.shape[0])
    return nn.Sequential(
        OrderedDict(
            conv=WeightNormConv2d(config.down_channels, raw, 3),
            crop=Crop(config.shape[1:], config.padded),
            head=head,
        )
    )
