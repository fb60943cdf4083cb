"""The two passes of BIVA and of its relatives, and how they are built."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn

from ladder.inference import BottomUp
from ladder.layers import StochasticLayer
from ladder.likelihoods import make_head
from ladder.merges import Direct
from ladder.model import Constant, HierarchicalVAE, TopDown
from ladder.nets import Crop, Pad
from ladder.priors import ConditionalNormal
from ladder.systems.biva.blocks import Chain, GatedBlock, Shape, Style
from ladder.systems.biva.config import Config, LayerSpec
from ladder.systems.biva.layers import (
    Bidirectional,
    Conditional,
    Generate,
    Independent,
    Last,
    Merge,
    TopGenerate,
    TopMerge,
)
from ladder.systems.biva.normed import Conv, Dense, features
from ladder.systems.biva.rungs import (
    Below,
    BidirectionalRung,
    BothBelow,
    BottomUpRung,
    Climb,
    LadderRung,
    TopRung,
)


class Stem(nn.Module):
    """What the first rung reads: the data in [0, 1], with zeros around them, or as 2x - 1.

    Args:
        config: The model section.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pad = Pad(config.shape[1:], config.padded)
        self.centred = config.centred
        self.both = config.inference == "bidirectional"

    def forward(self, x: Tensor) -> Below | BothBelow:
        """Turn data `[B, C, H, W]` into the state below the first rung."""
        x = self.pad(x)
        x = 2.0 * x - 1.0 if self.centred else x
        return BothBelow(x, x) if self.both else Below(x)


def build(config: Config) -> HierarchicalVAE:
    """Build the model; data-dependent initialisation is `initialise`."""
    rungs = {f"z{i + 1}": _rung(config, i) for i in range(len(config.stack))}
    return HierarchicalVAE(BottomUp(rungs, Stem(config)), _top_down(config), _likelihood(config))


def _rung(config: Config, i: int) -> nn.Module:
    if config.inference == "ladder":
        return LadderRung(_up(config, i, config.filters))
    if config.inference == "bottom_up":
        # Nothing reads what the top z is widened to; the weights are in released files and counts.
        widen = _widen(config, i).requires_grad_(i < len(config.stack) - 1)
        return BottomUpRung(_up(config, i, config.filters), _normal(config, i), widen)
    climb = Climb(_up(config, i, 2 * config.filters), _beside(config, i))
    if i < len(config.stack) - 1:
        return BidirectionalRung(climb, _normal(config, i), _widen(config, i))
    block = GatedBlock(Shape(2 * config.filters, _kernel(config, i)), _style(config, "q"))
    return TopRung(climb, block, _normal(config, i), config.top_order == "td_bu")


def _up(config: Config, i: int, aux: int) -> Chain:
    """Blocks that read what the rung below drew or found; its features are beside that."""
    reads = config.filters if config.inference == "ladder" else _width(config, i - 1)
    aux = aux if i > 0 and config.skip else 0
    return Chain(list(_climbing(config, i, reads, Shape(0, 0, aux=aux))))


def _beside(config: Config, i: int) -> Chain:
    """Deterministic blocks that read those of the rung below; b_l is beside them."""
    spec = config.stack[i]
    shape = Shape(0, 0, aux=config.filters, aux_up=spec.stride)
    return Chain(list(_climbing(config, i, config.filters, shape)))


def _climbing(config: Config, i: int, reads: int, shape: Shape) -> Iterator[GatedBlock]:
    spec, style = config.stack[i], _style(config, "q")
    for j, kernel in enumerate(spec.kernels(config.blocks)):
        first, last = j == 0, j == config.blocks - 1
        channels = (config.shape[0] if i == 0 else reads) if first else config.filters
        shape = shape._replace(channels=channels, kernel=kernel, down=spec.stride if last else 1)
        yield GatedBlock(shape, style, residual=not (first and i == 0))


def _top_down(config: Config) -> TopDown:
    n = len(config.stack)
    layers: dict[str, nn.Module] = {f"z{n}": _top(config)}
    make = _both if config.inference == "bidirectional" else _layer
    for i in reversed(range(n - 1)):
        layers[f"z{i + 1}"] = make(config, i)
    top = config.stack[-1]
    space = [] if top.dim else config.space(n - 1)
    start = Constant(2 * top.size, *space, learned=config.learn_top_prior)
    return TopDown(start, layers, Last(nn.ELU()))


def _top(config: Config) -> StochasticLayer:
    i = len(config.stack) - 1
    merge: nn.Module = Direct()
    if config.inference == "ladder":
        merge = TopMerge(_block(config, _kernel(config, i), aux=0), _normal(config, i))
    prior = ConditionalNormal(nn.Identity())  # the state above holds its parameters
    combine = TopGenerate(_widen(config, i), _generating(config, i, aux=0))
    return StochasticLayer(nn.Identity(), prior, merge, combine)


def _layer(config: Config, i: int) -> StochasticLayer:
    merge: nn.Module = Direct()
    if config.inference == "ladder":
        merge = Merge(_block(config, _kernel(config, i)), _normal(config, i))
    combine = Generate(_widen(config, i), _generating(config, i, _aux(config)))
    return StochasticLayer(nn.Identity(), Last(_normal(config, i)), merge, combine)


def _both(config: Config, i: int) -> Bidirectional:
    kernel = config.merge_kernel
    if kernel == "above":
        kernel = config.stack[i + 1].kernels(config.blocks)[0]
    merge = Merge(_block(config, kernel), _normal(config, i))
    bu_prior: nn.Module = Independent(_normal(config, i))
    if config.conditional_bu:
        shape = Shape(_width(config, i), kernel, aux=config.filters)
        block = GatedBlock(shape, _style(config, "p"))
        bu_prior = Conditional(_widen(config, i), block, _normal(config, i))
    combine = Generate(_widen(config, i, variables=2), _generating(config, i, _aux(config), 2))
    return Bidirectional(_normal(config, i), bu_prior, merge, combine)


def _generating(config: Config, i: int, aux: int, variables: int = 1) -> Chain:
    spec, style = config.stack[i], _style(config, "p")
    kernel, *kernels = reversed(spec.kernels(config.blocks))
    first = Shape(_width(config, i, variables), kernel, up=spec.stride, aux=aux)
    other = Shape(config.filters, kernel, aux=aux, aux_up=spec.stride)
    rest = [GatedBlock(other._replace(kernel=k), style) for k in kernels]
    return Chain([GatedBlock(first, style, residual=False), *rest])


def _aux(config: Config) -> int:
    return config.filters if config.skip else 0


def _block(config: Config, kernel: int, aux: int | None = None) -> GatedBlock:
    """A block that merges upward features with those from above, beside them."""
    aux = config.filters if aux is None else aux
    return GatedBlock(Shape(config.filters, kernel, aux=aux), _style(config, "p"))


def _kernel(config: Config, i: int) -> int:
    """Kernel of the i-th layer's last block, and of what comes after it."""
    return config.stack[i].kernels(config.blocks)[-1]


def _style(config: Config, path: str) -> Style:
    return Style(
        config.filters,
        config.q_dropout if path == "q" else config.p_dropout,
        config.input_activation == "every",
        config.shortcut == "padded",
    )


def _normal(config: Config, i: int) -> ConditionalNormal:
    """Features of the i-th layer's resolution to the Gaussian of one of its variables."""
    spec: LayerSpec = config.stack[i]
    if spec.dim is None:
        kernel = spec.latent_kernel or _kernel(config, i)
        net: nn.Module = Conv(config.filters, 2 * spec.size, kernel)
    else:
        net = Dense(config.filters * math.prod(config.space(i)), 2 * spec.size)
    return ConditionalNormal(nn.Sequential(nn.ELU(), net), config.scale)


def _widen(config: Config, i: int, variables: int = 1) -> nn.Module:
    """z of the i-th layer to what blocks read: a map as it is, or made of numbers."""
    spec = config.stack[i]
    if spec.dim is None:
        return nn.Identity()
    return features(variables * spec.size, config.filters, config.space(i))


def _width(config: Config, i: int, variables: int = 1) -> int:
    """Channels that `_widen` leaves."""
    spec = config.stack[i]
    return variables * spec.size if spec.dim is None else config.filters


def _likelihood(config: Config) -> nn.Sequential:
    head = make_head(config.likelihood)
    return nn.Sequential(
        OrderedDict(
            conv=Conv(config.filters, head.raw_channels(config.shape[0]), 1),
            crop=Crop(config.shape[1:], config.padded),
            head=head,
        )
    )
