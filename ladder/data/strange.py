"""Unfamiliar data made from familiar ones, so that nothing needs a download.

Every change is a function of its input alone: images `[N, C, H, W]`, uint8 or float32 in [0, 1],
to images of the same shape and dtype. Three keep the strokes, two keep only parts of them or
nothing, and two stand in for Fashion-MNIST, whose images are large filled silhouettes of grey
cloth: their mean is 0.29, that of MNIST 0.13. Those two want bright strokes on a dark ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ladder.data.batches import AT_ONCE, permutation, take
from ladder.data.rows import Data, Rows
from ladder.errors import UserError, suggest

Change = Callable[[Tensor], Tensor]

INK = 0.5  # grey value from which on a pixel belongs to a stroke
GROWN, CLOSED = 0.08, 0.15  # of the shorter side: strokes made thicker, then gaps closed
BLOCKS = 4  # along each side, that `shuffled` moves
GOLDEN = 0.618034  # its multiples, modulo 1, spread evenly however many there are


def mirrored(images: Tensor) -> Tensor:
    """Left to right, as mirror writing: the same strokes and statistics, so the hardest."""
    return images.flip(-1)


def rotated(images: Tensor) -> Tensor:
    """A quarter turn, as a page laid in the wrong way: familiar strokes that stand wrongly."""
    return images.rot90(1, (-2, -1)).contiguous()


def inverted(images: Tensor) -> Tensor:
    """Dark on light, as a photographic negative: familiar edges, strange in every pixel."""
    return (255 if images.dtype == torch.uint8 else 1) - images


def filled(images: Tensor) -> Tensor:
    """A large white silhouette without holes, left like right, as a garment cut out of paper."""
    return _in_floats(images, lambda x, _: _silhouette(x))


def textured(images: Tensor) -> Tensor:
    """The silhouette in striped grey cloth, darker towards its edge: mimics Fashion-MNIST."""
    return _in_floats(images, lambda x, rows: _cloth(_silhouette(x), rows))


def shuffled(images: Tensor) -> Tensor:
    """Blocks in another order, the same for all, as a sliding puzzle: familiar parts, no whole."""
    i, j = (min(BLOCKS, side) for side in images.shape[-2:])
    h, w = images.shape[-2] // i, images.shape[-1] // j
    changed = images.clone()  # keeps what is left over where the blocks do not fill a side
    blocks = rearrange(images[..., : i * h, : j * w], "n c (i h) (j w) -> n (i j) c h w", i=i, j=j)
    blocks = blocks[:, permutation(i * j, seed=0, epoch=0).to(images.device)]
    changed[..., : i * h, : j * w] = rearrange(blocks, "n (i j) c h w -> n c (i h) (j w)", i=i)
    return changed


def noise(images: Tensor) -> Tensor:
    """Every pixel drawn uniformly, as a detector without a picture; keeps only the shape."""
    generator = torch.Generator().manual_seed(0)
    if images.dtype == torch.uint8:
        drawn = torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)
    else:
        drawn = torch.rand(images.shape, generator=generator, dtype=images.dtype)
    return drawn.to(images.device)


CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (mirrored, rotated, inverted, filled, textured, shuffled, noise)
}


def fitting(shape: Sequence[int]) -> list[str]:
    """Names of the changes that data of this shape allow.

    Args:
        shape: Shape of one datum.

    Returns:
        None for data that are no images; all but silhouettes for colour, all but the quarter turn
        for images that are not square.
    """
    if len(shape) != 3:
        return []
    lacking = {"filled", "textured"} if shape[0] != 1 else set()
    lacking |= {"rotated"} if shape[1] != shape[2] else set()
    return [name for name in CHANGES if name not in lacking]


def strange_sets(images: Data, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Make unfamiliar sets from a familiar one.

    Args:
        images: Grey values as they are before a model's data are binarised, uint8 or in [0, 1],
            `[N, C, H, W]`.
        names: Which of `CHANGES`; `None` takes all that fit.

    Returns:
        The sets by name, each with the shape and dtype of `images`.

    Raises:
        UserError: If there is no such change, or it does not fit the images.
    """
    fit = fitting(images.shape[1:])
    chosen = fit if names is None else list(names)
    for name in chosen:
        if name not in CHANGES:
            raise UserError(
                f"unfamiliar data: there is no change '{name}'{suggest(name, CHANGES)}"
            )
        if name not in fit:
            right = f"choose from {', '.join(fit)}" if fit else "give sets of your own"
            raise UserError(
                f"unfamiliar data: '{name}' does not fit data of shape "
                f"{list(images.shape[1:])}; {right}"
            )
    held = images.read(torch.arange(len(images))) if isinstance(images, Rows) else images
    return {name: CHANGES[name](held) for name in chosen}


def _in_floats(images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Change some at a time, as floats in [0, 1] and with their row numbers."""
    changed = torch.empty_like(images)
    largest = 255 if images.dtype == torch.uint8 else 1
    for rows in torch.arange(len(images), device=images.device).split(AT_ONCE):
        x = change(take(images, rows, images.device), rows) * largest
        changed[rows] = (x.round() if largest == 255 else x).to(images.dtype)
    return changed


def _silhouette(x: Tensor) -> Tensor:
    """Ink and its mirror image, grown, gaps closed and holes filled; nothing gets darker."""
    grown, closed = (int(part * min(x.shape[-2:])) for part in (GROWN, CLOSED))
    around = closed + 1  # room for what grows and shrinks again, and a ring of ground
    ink = F.pad(torch.maximum(x, mirrored(x)) > INK, [around] * 4)
    ground = _dilated(~_dilated(ink, grown + closed), closed)
    body = ~_outside(ground)[..., around:-around, around:-around]
    return torch.maximum(x, body.to(x.dtype))


def _dilated(x: Tensor, radius: int) -> Tensor:
    """Whether anything is set around each pixel, in an octagon."""
    for step in range(radius):
        x = _spread(_spread(x, -1), -2) if step % 2 else _spread(x, -1) | _spread(x, -2)
    return x


def _spread(x: Tensor, axis: int) -> Tensor:
    """Whether a pixel or one beside it along the axis is set."""
    rest = x.shape[axis] - 1
    spread = x.clone()
    spread.narrow(axis, 1, rest).logical_or_(x.narrow(axis, 0, rest))
    spread.narrow(axis, 0, rest).logical_or_(x.narrow(axis, 1, rest))
    return spread


def _outside(ground: Tensor) -> Tensor:
    """The ground that can be reached from the ring around the image; the rest are holes."""
    reached = torch.zeros_like(ground)
    reached[..., 0, :] = True
    before = ~reached
    while not torch.equal(reached, before):
        before = reached
        for _ in range(4):  # sweep down, and turn: so in every direction
            ground, reached = (v.rot90(1, (-2, -1)).contiguous() for v in (ground, reached))
            for i in range(1, ground.shape[-2]):
                reached[..., i, :] |= reached[..., i - 1, :] & ground[..., i, :]
    return reached


def _cloth(body: Tensor, rows: Tensor) -> Tensor:
    """Grey stripes, each datum with its own shade, width and direction, under soft light."""
    height, width = body.shape[-2:]
    shade = 0.55 + 0.45 * (GOLDEN * rows % 1).view(-1, 1, 1, 1)
    period = (2 + rows % 5).view(-1, 1, 1, 1)
    down = torch.arange(height, device=body.device).view(1, 1, -1, 1)
    across = torch.arange(width, device=body.device).view(1, 1, 1, -1)
    along = torch.where((rows // 5 % 2).view(-1, 1, 1, 1) == 0, down, across)
    stripes = 1 - 0.35 * (along % period < period / 2)
    reach = max(1, min(height, width) // 10)
    light = F.avg_pool2d(body, 2 * reach + 1, 1, reach)
    return body * shade * stripes * (0.5 + 0.5 * light)
