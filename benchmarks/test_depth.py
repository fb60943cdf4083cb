"""A training step of declared ladders at two depths; the whole line is `depth.py`'s.

pytest benchmarks/test_depth.py --device cpu
"""

from __future__ import annotations

from typing import Any

import depth
import pytest
from counting import calls

from ladder.bench.measure import wait


@pytest.mark.parametrize("layers", [5, 20])
@pytest.mark.parametrize("kind", depth.KINDS)
def test_step(benchmark: Any, kind: str, layers: int, device: str) -> None:
    step = depth.stepper(depth.case(kind, layers, device))
    step()
    benchmark(lambda: (step(), wait(device)))


@pytest.mark.parametrize("kind", depth.KINDS)
def test_operators_are_linear_in_depth(kind: str, device: str) -> None:
    counts = []
    for layers in (3, 5, 7):
        step = depth.stepper(depth.case(kind, layers, device))
        step()
        counts.append(calls(step).count.total())
    three, five, seven = counts
    assert seven - five == five - three > 0


def test_the_line_through_points() -> None:
    fit = depth.line({5: 1.0, 10: 2.0, 20: 4.0})
    assert fit == pytest.approx((0.2, 0.0, 1.0))
