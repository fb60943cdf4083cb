"""Batches without a loader: a set that fits lives on the device and is batched there.

What does not fit is gathered from the memory of the machine, or from its files.

An epoch is `permutation(n, seed, epoch)`; a batch is `take` of a slice of it. Nothing here keeps
state, so resuming in the middle of an epoch needs only the numbers of the epoch and the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ladder.data.rows import Data, Rows

# Data read at once where a set is copied from its files to a device.
AT_ONCE = 256


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a function of its arguments only.

    Args:
        n: Number of data.
        seed: Seed of the run, at least 0.
        epoch: Epoch, counted from 0.

    Returns:
        Each of 0 to n - 1 once, int64 [n], on the CPU.
    """
    # Sorting raw bits, because NumPy freezes its bit streams but not `Generator.permutation`:
    # a run can be resumed under another version.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return torch.from_numpy(keys.argsort(kind="stable").astype(np.int64, copy=False))


def place(images: Data, device: torch.device) -> Data:
    """Put a set where its batches are gathered.

    Args:
        images: The set, [N, *shape].
        device: Where the batches are needed.

    Returns:
        The set on `device`, read from its files if it was still there; or where it was, if it
        would take more than half of the free memory of a CUDA device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > free // 2:
            return images
    if isinstance(images, Rows):
        # The CPU gains nothing: what is read often stays in memory anyway, as long as it fits.
        return images if device.type == "cpu" else _copied(images, device)
    return images.to(device)


def _copied(images: Rows, device: torch.device) -> Tensor:
    placed = torch.empty(images.shape, dtype=images.dtype, device=device)
    rows = torch.arange(len(images)).split(AT_ONCE)
    for target, index in zip(placed.split(AT_ONCE), rows, strict=True):
        target.copy_(images.read(index))
    return placed


def take(images: Data, index: Tensor, device: torch.device) -> Tensor:
    """Gather a batch where the set lives, as the network wants it.

    Args:
        images: The set, uint8 or float32 [N, *shape].
        index: Rows, int64 [B], on any device.
        device: Where the batch is needed.

    Returns:
        The rows on `device`, float32 [B, *shape]; uint8 is scaled to [0, 1].

    Raises:
        UserError: If the set lies in files, and one of them cannot be read.
    """
    rows = _rows(images, index.to(images.device, non_blocking=True), device)
    # The bytes travel, not the four times larger floats.
    rows = rows.to(device, non_blocking=True)
    return rows.to(torch.float32).div_(255) if rows.dtype == torch.uint8 else rows


def _rows(images: Data, index: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory runs beside the computation.
    pinned = images.device.type == "cpu" and device.type == "cuda"
    if isinstance(images, Rows):
        rows = images.read(index)
        return rows.pin_memory() if pinned else rows
    if not pinned:
        return images.index_select(0, index)
    shape = (len(index), *images.shape[1:])
    rows = torch.empty(shape, dtype=images.dtype, pin_memory=True)
    return torch.index_select(images, 0, index, out=rows)


def flipped(x: Tensor) -> Tensor:
    """Mirror each image, left to right, with probability 1/2.

    Args:
        x: Images, floating point [B, C, H, W].

    Returns:
        The images, some of them mirrored.
    """
    mirrored = torch.rand_like(x[:, :1, :1, :1]) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw zeros and ones with the grey values as probabilities.

    Args:
        x: Probabilities of a one, floating point in [0, 1], of any shape.
        generator: Source of the noise, on the device of `x`; None takes the global one.

    Returns:
        Zeros and ones, with the shape and dtype of `x`.
    """
    if generator is None:
        noise = torch.rand_like(x)
    else:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (noise < x).to(x.dtype)
