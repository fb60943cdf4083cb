"""What training keeps in memory: linear in batch and depth, and less where layers run twice.

pytest benchmarks/test_memory_kept.py --device cpu
"""

from __future__ import annotations

import depth
import pytest
import torch
from conftest import PRESETS

from ladder.bench.case import Case, configured, images
from ladder.bench.measure import wait
from ladder.bench.memory import peak_gib
from ladder.bench.trainee import trainee
from ladder.train.plan import plan


def kept(preset: str, batch: int, recompute: bool = False) -> float:
    """MiB that a batch keeps for the backward pass."""
    case = Case(preset, ["data=digits"], batch, recompute=recompute)
    return float(plan(configured(case))["memory_mib"]["activations"])


@pytest.mark.parametrize("preset", [*PRESETS, "vdvae_cifar10"])
def test_linear_in_the_batch(preset: str) -> None:
    two, four, six = (kept(preset, batch) for batch in (2, 4, 6))
    assert six - four == four - two > 0


@pytest.mark.parametrize("kind", depth.KINDS)
def test_linear_in_depth(kind: str) -> None:
    two, four, six = (depth.kept_mib(kind, layers) for layers in (2, 4, 6))
    assert six - four == four - two > 0


@pytest.mark.parametrize("preset", ["tiny_vdvae", "tiny_nvae", "tiny_biva", "tiny_lvae_conv"])
def test_less_where_layers_run_twice(preset: str) -> None:
    assert 0 < kept(preset, 8, recompute=True) < 0.8 * kept(preset, 8)


def test_no_step_takes_more_than_the_one_before(device: str) -> None:
    case = Case("tiny_vdvae", [], 8, device)
    ready, x = trainee(case), images(case, case.batch)
    for _ in range(3):
        ready.step(x)
    wait(device)
    if not device.startswith("cuda"):
        assert peak_gib(device) > 0
        return
    peaks = []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(5):
            ready.step(x)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] == peaks[1]
