"""A training step and samples of the tiny VD-VAE; whole presets are `vdvae.py`'s.

pytest benchmarks/test_vdvae_step.py -s
"""

from __future__ import annotations

from typing import Any

import biva_released
import pytest
import torch
import vdvae
import vdvae_child
from vdvae_child import How
from vdvae_models import Case, images, ours
from vdvae_released import strings

from ladder.build import resolve

CASE = Case("tiny_vdvae", [], batch=8)


@pytest.mark.parametrize("recompute", [False, True])
def test_step(benchmark: Any, recompute: bool) -> None:
    trainee, x = ours(CASE._replace(recompute=recompute)), images(CASE, CASE.batch)
    benchmark(trainee.step, x)
    assert trainee.counts()["training_failed"] is False


def test_sampling(benchmark: Any) -> None:
    drawn = benchmark(ours(CASE).sample, 4)
    assert drawn.shape == (4, 1, 8, 8)
    assert drawn.dtype == torch.uint8


def test_row() -> None:
    how = How(windows=2, steps=1, warmup=0, sample_batch=2)
    row = {**CASE._asdict(), **vdvae_child.measure(CASE, how)}
    assert len(row["seconds"]) == 2
    assert row["peak_memory_gib"] > 0
    assert "images/s" in vdvae.table([row])


@pytest.mark.parametrize("true", [0, 1, 5, 37, 64])
@pytest.mark.parametrize("least", [1, 16])
def test_the_largest_batch_is_found(true: int, least: int) -> None:
    found, peaks = vdvae_child.search(lambda n: float(n) if n <= true else None, 64, least)
    assert true - true // 16 <= found <= true
    assert len(peaks) < 14


def test_the_plan_in_the_words_of_the_released_code() -> None:
    assert strings(resolve(CASE.preset).model) == {
        "enc_blocks": "8x1,8d2,4x1,4d4,1x1",
        "dec_blocks": "1x1,4m1,4x2,8m4,8x1",
        "custom_width_str": "",
    }


def test_the_plan_of_biva_in_the_words_of_the_released_code() -> None:
    assert biva_released.stages(resolve("tiny_biva").model) == [
        [[8, 3, 1], [8, 3, 2]],
        [[8, 3, 1], [8, 3, 1]],
        [[8, 3, 1], [8, 3, 2]],
    ]
