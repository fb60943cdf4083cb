"""A training step of small models, by preset, precision and mode; large ones are `steps.py`'s.

pytest benchmarks/test_steps.py --device cpu
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import PRESETS
from counting import allocated, calls

from ladder.bench.case import Case, images
from ladder.bench.measure import wait
from ladder.bench.trainee import trainee

Way = tuple[str, str]


@pytest.mark.parametrize("preset", PRESETS)
def test_step(benchmark: Any, preset: str, way: Way, device: str) -> None:
    case = Case(preset, [], 32, device, *way)
    ready, x = trainee(case), images(case, case.batch)
    done = [0]

    def step() -> None:
        ready.step(x)
        wait(device)
        done[0] += 1

    for _ in range(5 if benchmark.enabled else 0):
        step()
    benchmark(step)
    assert ready.counts() == {"steps": done[0], "left_out": 0, "training_failed": False}
    benchmark.extra_info.update(images_per_step=case.batch)


@pytest.mark.parametrize("batch", [32, 128, 512])
def test_batch(benchmark: Any, batch: int, device: str) -> None:
    case = Case("mnist_2layer", [], batch, device)
    ready, x = trainee(case), images(case, batch)
    assert x.shape == (batch, 1, 28, 28)
    ready.step(x)
    one = x[:1]
    few = calls(lambda: ready.step(one)).count
    assert calls(lambda: ready.step(x)).count == few  # as many operators for any batch
    benchmark(lambda: (ready.step(x), wait(device)))


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_read_back(preset: str, device: str) -> None:
    case = Case(preset, [], 8, device)
    ready, x = trainee(case), images(case, case.batch)
    ready.step(x)
    second = calls(lambda: ready.step(x))
    for _ in range(3):
        ready.step(x)
    later = calls(lambda: ready.step(x))
    assert second.reads == later.reads == 0
    assert second.count == later.count
    if device.startswith("cuda"):
        before = allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):
                ready.step(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert allocated() == before
