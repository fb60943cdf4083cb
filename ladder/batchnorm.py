"""Batch norm over the batch of all processes, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

_ALONE = False  # not a context variable, which torch.compile cannot read


class _OverAll(_BatchNorm):
    """Batch norm; while processes train together, with the statistics of their whole batch.

    The same as torch's in a single process, and like torch's `SyncBatchNorm`, which knows GPUs
    only, among several: each may have another number of data. Two exchanges forward and two
    backward, of as many numbers as there are channels, so that no variance is a difference of two
    large numbers.

    Args:
        channels: C of the input.
        momentum: Share of a batch in the running statistics.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, ...]` channel by channel."""
        if not (self.training and processes() > 1):
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [axis for axis in range(x.ndim) if axis != 1]
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = total(torch.cat([count, values.sum(others)]))
        mean = sums[1:] / sums[0]
        centred = values - _by_channel(mean, x)
        variance = total(centred.square().sum(others)) / sums[0]
        self._follow(mean, variance * sums[0] / (sums[0] - 1.0))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * _by_channel(scale, x) + _by_channel(self.bias, x)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics take up those of a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class BatchNorm1d(_OverAll, nn.BatchNorm1d):
    """Over `[B, C]`, see above."""


class BatchNorm2d(_OverAll, nn.BatchNorm2d):
    """Over `[B, C, H, W]`, see above."""


def processes() -> int:
    """How many processes train together."""
    if _ALONE or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """Normalise by this process's own data inside the block, where others may not follow."""
    global _ALONE
    before, _ALONE = _ALONE, True
    try:
        yield
    finally:
        _ALONE = before


def total(values: Tensor) -> Tensor:
    """Sum over all processes, which all get it, and whose gradients reach all of them."""
    summed: Tensor = _Total.apply(values)
    return summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 2))
