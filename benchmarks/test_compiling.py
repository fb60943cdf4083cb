"""The first step of what is compiled layer by layer: its time, graphs and breaks.

pytest benchmarks/test_compiling.py --device cpu
"""

from __future__ import annotations

from typing import Any

import depth
import pytest
import torch
from conftest import PRESETS

from ladder.bench.case import Case, configured, images
from ladder.bench.trainee import trainee
from ladder.build import build_model
from ladder.execution import called_layers

COUNTERS = torch._dynamo.utils.counters


@pytest.mark.parametrize("preset", PRESETS)
def test_first_step(benchmark: Any, preset: str, device: str) -> None:
    backend = "inductor" if benchmark.enabled else "eager"  # which writes no code
    case = Case(preset, [], 8, device, mode="compiled", backend=backend)
    ready, x = trainee(case), images(case, case.batch)
    benchmark.pedantic(ready.step, args=(x,), rounds=1)
    graphs = COUNTERS["stats"]["unique_graphs"]
    with torch.device("meta"):
        layers = called_layers(build_model(config=configured(case)))
    assert 0 < graphs <= len(layers)
    assert sum(COUNTERS["graph_break"].values()) == 0
    for _ in range(3):
        ready.step(x)
    assert COUNTERS["stats"]["unique_graphs"] == graphs  # no step compiles anything again
    benchmark.extra_info.update(graphs=graphs, layers=len(layers))


@pytest.mark.parametrize("kind", depth.KINDS)
def test_graphs_do_not_grow_with_depth(kind: str) -> None:
    few, more = (depth.graphs(kind, layers, "eager") for layers in (3, 6))
    assert few == more
    assert few.breaks == 0
