"""Noise as a function of a seed: reproducible, and gone when the block ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's generators inside the block, and give them back as they were.

    Args:
        seed: The seed; `None` leaves the generators alone.
    """
    if seed is None:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        _seed(seed)
        yield


def reseed(seed: int, step: int, rank: int = 0) -> None:
    """Make the noise of a shard of a training step a function of (seed, step, rank) alone.

    So a resumed run draws what the uninterrupted one would have drawn, evaluations in between
    change nothing, and a step that failed can be run again to see where.

    Args:
        seed: The run's seed.
        step: Optimiser step.
        rank: Number of the shard.
    """
    # torch's CPU generator keeps 32 bits of a seed: consecutive steps must differ in those.
    _seed((_origin(seed, rank) + step) % 2**32)


@cache
def _origin(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint32)[0])


def _seed(seed: int) -> None:
    # Not `torch.manual_seed`: without a GPU in use that notes a stack trace for later, each time.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
