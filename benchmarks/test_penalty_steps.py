"""A step of the tiny NVAE with its penalties, and without; the published size is `penalties.py`'s.

pytest benchmarks/test_penalty_steps.py --device cpu
"""

from __future__ import annotations

from typing import Any

import penalties
import pytest
import torch

from ladder.build import resolve
from ladder.train.state import new_state
from ladder.train.step import train_step


@pytest.mark.parametrize("kind", ["none", "spectral", "both"])
def test_step(benchmark: Any, kind: str) -> None:
    config = resolve("tiny_nvae")
    state = new_state(config, torch.device("cpu"))
    state.penalising = penalties.kinds(state, config.objective)[kind]
    benchmark(train_step, state, torch.rand(8, 1, 8, 8), config)
    assert state.failed.item() == 0


def test_kinds_take_turns() -> None:
    result = penalties.measure("tiny_nvae", 4, "cpu", 2, [])
    assert {name: len(times) for name, times in result["seconds"].items()} == {
        "none": 2,
        "spectral": 2,
        "both": 2,
    }
    none, both = (result["median_seconds"][kind] for kind in ("none", "both"))
    assert result["added_share_of_seconds"]["both"] == pytest.approx(both / none - 1)
