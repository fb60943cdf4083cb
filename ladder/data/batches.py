"""Batches without a loader: a set that fits lives on the device and is batched there.

An epoch is `permutation(n, seed, epoch)`; a batch is `take` of a slice of it. Nothing here keeps
state, so resuming in the middle of an epoch needs only the numbers of the epoch and the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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


def place(images: Tensor, device: torch.device) -> Tensor:
    """Put a set where its batches are gathered.

    Args:
        images: The set, [N, *shape].
        device: Where the batches are needed.

    Returns:
        The set on `device`; or where it was, if it would take more than half of the free memory
        of a CUDA device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > free // 2:
            return images
    return images.to(device)


def take(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Gather a batch where the set lives, as the network wants it.

    Args:
        images: The set, uint8 or float32 [N, *shape].
        index: Rows, int64 [B], on any device.
        device: Where the batch is needed.

    Returns:
        The rows on `device`, float32 [B, *shape]; uint8 is scaled to [0, 1].
    """
    rows = _rows(images, index.to(images.device, non_blocking=True), device)
    # The bytes travel, not the four times larger floats.
    rows = rows.to(device, non_blocking=True)
    return rows.to(torch.float32).div_(255) if rows.dtype == torch.uint8 else rows


def _rows(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    if images.device.type != "cpu" or device.type != "cuda":
        return images.index_select(0, index)
    # Only a copy from pinned memory runs beside the computation.
    shape = (len(index), *images.shape[1:])
    rows = torch.empty(shape, dtype=images.dtype, pin_memory=True)
    return torch.index_select(images, 0, index, out=rows)


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
