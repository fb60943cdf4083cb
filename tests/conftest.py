"""What every test shares: a seed, and noise that a test chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

# Before torch is imported, here and by the processes that tests start: threads that wait for each
# other take longer than the small models here do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings
from torch import Tensor

# The same examples in every run, however slow the machine.
settings.register_profile("ladder", deadline=None, derandomize=True)
settings.load_profile("ladder")

Feed = Callable[[Iterable[Tensor]], None]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Feed:
    """Let `torch.randn_like` return these tensors, one for each call, and then nothing more."""

    def start(noise: Iterable[Tensor]) -> None:
        queue = iter(noise)

        def randn_like(like: Tensor, **_: Any) -> Tensor:
            values = next(queue)
            assert values.shape == like.shape
            return values.to(like)

        monkeypatch.setattr(torch, "randn_like", randn_like)

    return start
