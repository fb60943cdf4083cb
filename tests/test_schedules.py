"""Schedules: pure functions of the step, as data for a compiled step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ladder.config import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    LinearSchedule,
    Settings,
)
from ladder.schedules import SCHEDULES, constant, cosine, cyclic, linear

CASES: list[tuple[Callable[..., Tensor], dict[str, Any]]] = [
    (constant, {"value": 0.3}),
    (linear, {"steps": 7, "start": 0.2, "end": 1.5}),
    (linear, {"steps": 7, "delay": 2.5, "least": 0.1}),
    (cosine, {"steps": 7, "start": 1.0, "end": 0.1}),
    (cyclic, {"period": 6, "ramp": 0.3, "start": 0.1, "end": 0.9}),
    (cyclic, {"period": 6, "cycles": 2}),
]


@pytest.mark.parametrize(("schedule", "arguments"), CASES)
def test_int_and_tensor_steps_agree(
    schedule: Callable[..., Tensor], arguments: dict[str, Any]
) -> None:
    for step in range(30):
        value = schedule(step, **arguments)
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert torch.equal(value, schedule(torch.tensor(step), **arguments))


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.25), (0.5, 0.5)])
def test_endpoints_and_the_flat_end(
    schedule: Callable[..., Tensor], start: float, end: float
) -> None:
    assert schedule(0, 8, start, end).item() == start
    assert schedule(4, 8, start, end).item() == pytest.approx((start + end) / 2, abs=1e-15)
    for step in (8, 9, 10**9):
        assert schedule(step, 8, start, end).item() == end


@given(st.integers(0, 200), st.integers(1, 100))
def test_linear_and_cosine_are_their_formulas(step: int, steps: int) -> None:
    progress = min(step / steps, 1.0)
    assert linear(step, steps, 0.5, 2.0).item() == pytest.approx(0.5 + 1.5 * progress, abs=1e-14)
    expected = 0.5 + 1.5 * (1.0 - math.cos(math.pi * progress)) / 2
    assert cosine(step, steps, 0.5, 2.0).item() == pytest.approx(expected, abs=1e-14)


@given(st.integers(0, 300), st.integers(1, 100), st.floats(0.0, 60.0), st.floats(0.0, 1.0))
def test_a_delayed_line_is_the_published_one(
    step: int, steps: int, delay: float, least: float
) -> None:
    expected = max(min((step - delay) / steps, 1.0), least)
    assert linear(step, steps, delay=delay, least=least).item() == pytest.approx(
        expected, abs=1e-15
    )


@given(st.integers(0, 300), st.floats(0.0, 60.0), st.floats(0.0, 2.0))
def test_a_delayed_line_begins_where_it_starts_and_knows_its_least(
    step: int, delay: float, least: float
) -> None:
    progress = max(min((step - delay) / 40, 1.0), 0.0)
    for start, end in ((0.5, 2.0), (2.0, 0.5)):
        value = linear(step, 40, start, end, delay, least).item()
        assert value == pytest.approx(max(start + (end - start) * progress, least), abs=1e-14)


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_a_line_without_delay_has_the_bits_it_always_had(
    step: int, steps: int, start: float, end: float
) -> None:
    before = start + (end - start) * min(step / steps, 1.0)
    assert linear(step, steps, start, end).item() == max(before, 0.0)
    section = LinearSchedule(kind="linear", steps=steps, start=start, end=end).model_dump()
    assert SCHEDULES[section.pop("kind")](step, **section).item() == max(before, 0.0)


@given(st.integers(0, 500), st.integers(1, 40), st.floats(0.05, 1.0))
def test_cyclic_is_its_formula(step: int, period: int, ramp: float) -> None:
    expected = min((step % period) / period / ramp, 1.0)
    assert cyclic(step, period, ramp).item() == pytest.approx(expected, abs=1e-10)


@given(st.integers(0, 100), st.integers(1, 50), st.integers(0, 20))
def test_cyclic_repeats(step: int, period: int, cycle: int) -> None:
    at = cyclic(step, period, 0.5).item()
    assert cyclic(step + cycle * period, period, 0.5).item() == pytest.approx(at, abs=1e-10)


def test_cyclic_starts_anew_and_after_its_cycles_stays() -> None:
    values = [cyclic(s, 10, 0.5, cycles=3, start=0.2, end=0.8).item() for s in range(50)]
    assert [s for s in range(50) if values[s] == 0.2] == [0, 10, 20]
    assert values[5:10] == values[15:20] == [0.8] * 5
    assert values[30:] == [0.8] * 20


@pytest.mark.parametrize(("schedule", "arguments"), CASES)
def test_compiles_to_one_graph_for_every_step(
    schedule: Callable[..., Tensor], arguments: dict[str, Any]
) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def weight(step: Tensor) -> Tensor:
        return schedule(step, **arguments)

    compiled = torch.compile(weight, backend=backend, fullgraph=True)
    for step in (0, 3, 100):
        assert torch.equal(compiled(torch.tensor(step)), schedule(step, **arguments))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "section",
    [
        ConstantSchedule(value=0.5),
        LinearSchedule(kind="linear", steps=4),
        LinearSchedule(kind="linear", steps=4, delay=0.5, least=1e-4),
        CosineSchedule(kind="cosine", steps=4),
        CyclicSchedule(kind="cyclic", period=4, cycles=2),
    ],
)
def test_every_kind_of_the_configuration_is_a_schedule_with_its_arguments(
    section: Settings,
) -> None:
    arguments = section.model_dump()
    assert SCHEDULES[arguments.pop("kind")](2, **arguments).isfinite()
