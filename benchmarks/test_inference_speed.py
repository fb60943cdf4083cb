"""Samples, latents and importance-weighted bounds of small models.

pytest benchmarks/test_inference_speed.py --device cpu
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import PRESETS

from ladder.bench.case import Case, images
from ladder.bench.measure import wait
from ladder.bench.trainee import trainee

every_preset = pytest.mark.parametrize("preset", PRESETS)


@every_preset
@pytest.mark.parametrize("n", [4, 64])
def test_sampling(benchmark: Any, preset: str, n: int, device: str) -> None:
    case = Case(preset, [], 8, device)
    drawn = benchmark(trainee(case).sample, n)
    assert drawn.shape == images(case, n).shape
    assert drawn.dtype == torch.uint8
    assert drawn.device.type == "cpu"


@every_preset
def test_encoding(benchmark: Any, preset: str, device: str) -> None:
    case = Case(preset, [], 8, device)
    ready, x = trainee(case), images(case, case.batch)
    assert ready.encode is not None
    latents = benchmark(lambda: (ready.encode(x), wait(device))[0])
    assert list(latents) == [f"z{i}" for i in range(len(latents), 0, -1)]
    assert all(v.q is not None and v.z.shape[0] == 8 for v in latents.values())


@every_preset
@pytest.mark.parametrize("samples", [1, 64])
def test_bound(benchmark: Any, preset: str, samples: int, device: str) -> None:
    case = Case(preset, [], 16, device)
    ready, x = trainee(case), images(case, case.batch)
    assert ready.bound is not None
    one = ready.bound(x, 1)
    many = benchmark(lambda: (ready.bound(x, samples), wait(device))[0])
    assert many.shape == (16,)
    assert many.isfinite().all()
    assert samples == 1 or many.mean() > one.mean()  # as it is in expectation, and by far
