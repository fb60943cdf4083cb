"""Gated residual blocks with auxiliary inputs, and chains of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ladder.systems.biva.normed import Conv, ConvUp, margins


class Style(NamedTuple):
    """What all blocks of a pass have in common.

    Attributes:
        filters: Channels of features.
        dropout: Probability of a number to be dropped in training.
        activate: Whether blocks without a residual connection begin with an ELU as well.
        padded: Whether residual connections change channels and resolution as in the TensorFlow
            original.
    """

    filters: int
    dropout: float
    activate: bool
    padded: bool


class Shape(NamedTuple):
    """What is a block's own.

    Attributes:
        channels: Of the input.
        kernel: Extent of its convolutions.
        down: Factor by which it lowers the resolution.
        up: Factor by which it raises it.
        aux: Channels of the auxiliary input; 0 for none.
        aux_up: Factor by which the resolution of that is lower than the input's.
    """

    channels: int
    kernel: int
    down: int = 1
    up: int = 1
    aux: int = 0
    aux_up: int = 1


class Shortcut(nn.Module):
    """The input of a block as its output is: of so many channels, at its resolution.

    Args:
        out: Channels of the output; of more the first are taken, beside fewer come zeros.
        window: Extent of means over positions.
        stride: Positions between two means; 1 keeps the resolution.
    """

    def __init__(self, out: int, window: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.out, self.window, self.stride = out, window, stride
        before, after = margins(window, stride)
        self.around = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, out, H / stride, W / stride]`."""
        if self.stride > 1:  # zeros count, so the divisor is the same everywhere
            x = F.avg_pool2d(F.pad(x, self.around), self.window, self.stride)
        missing = self.out - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, : self.out]


def shortcut(shape: Shape, style: Style) -> Shortcut | None:
    """The residual connection that a published rule gives a block; `None` for none."""
    if shape.up > 1:
        return None
    if style.padded:
        wide = shape.channels > style.filters
        return None if wide else Shortcut(style.filters, shape.down, shape.down)
    narrow = shape.channels < style.filters
    return None if narrow else Shortcut(style.filters, 3, shape.down)


class GatedBlock(nn.Module):
    """a * sigmoid(b) + x, where [a, b] = conv(dropout(ELU(conv(ELU(x)) + op(ELU(aux))))).

    Args:
        shape: Its own sizes.
        style: What it shares with others.
        residual: Whether x is added, where channels and resolution allow it; otherwise there is no
            ELU before the first convolution either, unless the style says so.
    """

    def __init__(self, shape: Shape, style: Style, residual: bool = True) -> None:
        super().__init__()
        channels, kernel, down, up, aux, aux_up = shape
        filters = style.filters
        self.first = Conv(channels, filters, kernel)
        self.aux: nn.Module | None = None
        if aux:
            self.aux = (
                Conv(aux, filters, 1) if aux_up == 1 else ConvUp(aux, filters, kernel, aux_up)
            )
        self.dropout = nn.Dropout(style.dropout)
        self.second: nn.Module = (
            Conv(filters, 2 * filters, kernel, down)
            if up == 1
            else ConvUp(filters, 2 * filters, kernel, up)
        )
        self.shortcut = shortcut(shape, style) if residual else None
        self.activate = residual or style.activate

    def forward(self, x: Tensor, aux: Tensor | None = None) -> Tensor:
        """Map `[B, channels, H, W]` to `[B, filters, ...]`; a block without aux ignores it."""
        y = self.first(F.elu(x) if self.activate else x)
        if self.aux is not None:
            assert aux is not None
            y = y + self.aux(F.elu(aux))
        a, b = self.second(self.dropout(F.elu(y))).chunk(2, dim=1)
        gated: Tensor = a * b.sigmoid()
        return gated if self.shortcut is None else gated + self.shortcut(x)


class Chain(nn.Module):
    """A layer's blocks, one after another.

    Args:
        blocks: The blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, aux: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Outputs of all blocks; each sees an auxiliary input of its own."""
        outputs = []
        for block, a in zip(self.blocks, aux, strict=True):
            x = block(x, a)
            outputs.append(x)
        return tuple(outputs)

    def last(self, x: Tensor, aux: Tensor | None) -> Tensor:
        """Output of the last block; all see the same auxiliary input."""
        for block in self.blocks:
            x = block(x, aux)
        return x
