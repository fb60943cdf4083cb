"""A training step of declared ladders at two depths; the whole line is `depth.py`'s.

pytest benchmarks/test_depth.py -s
"""

from __future__ import annotations

from typing import Any

import depth
import pytest


@pytest.mark.parametrize("layers", [5, 20])
@pytest.mark.parametrize("kind", depth.KINDS)
def test_step(benchmark: Any, kind: str, layers: int) -> None:
    benchmark(depth.seconds, depth.make(kind, layers, "cpu", compiled=False), 1)
