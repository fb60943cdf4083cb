"""An epoch of MNIST our way and the notebook's way, side by side in one run.

    pytest benchmarks/test_training.py -s

Windows of the two alternate, so that a busy machine slows both. The file written under
`results/` holds every window; README quotes the ratio of the medians.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import notebook
import pytest
import torch
from conftest import peak_memory_in_a_new_process, write_result

from ladder.build import resolve
from ladder.data import load
from ladder.errors import UserError
from ladder.train.loop import Setup, batches, set_up
from ladder.train.state import State, new_state
from ladder.train.step import train_step

WINDOWS = 5
FLOP = 6 * 610_480 * 60_000  # of an epoch's matrix products, forward and backward

MEMORY = """
from pathlib import Path
from ladder.build import resolve
from ladder.train.loop import batches, set_up
from ladder.train.state import new_state
from ladder.train.step import train_step
config = resolve("mnist_2layer", ["train.device=cpu"])
setup = set_up(config, Path("unused"))
state = new_state(config, setup.device)
for _, x in zip(range(setup.steps_per_epoch), batches(setup, 0)):
    train_step(state, x, config)
"""


@pytest.fixture(scope="module")
def ours() -> tuple[Setup, State]:
    config = resolve("mnist_2layer", ["train.device=cpu"])
    try:
        load(config.data, config.model.shape)
    except UserError as error:
        pytest.skip(str(error))
    setup = set_up(config, Path("unused"))
    return setup, new_state(config, setup.device)


@pytest.fixture(scope="module")
def theirs(ours: Any) -> tuple[Any, ...]:
    from torchvision import datasets

    roots = [os.environ.get("LADDER_DATA", ""), Path("~/.cache/ladder").expanduser()]
    for root in filter(None, roots):
        try:
            datasets.MNIST(str(root), train=True)
        except RuntimeError:
            continue
        model = notebook.Documented()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return model, notebook.loader(Path(root)), optimizer
    pytest.skip("no unpacked MNIST")


def our_epoch(setup: Setup, state: State) -> None:
    for _, x in zip(range(setup.steps_per_epoch), batches(setup, state.step), strict=False):
        train_step(state, x, setup.config)
    state.meter.read()


def test_epoch(
    benchmark: Any, ours: tuple[Setup, State], theirs: tuple[Any, ...], matrix_rate: float
) -> None:
    if not benchmark.enabled:
        setup, state = ours
        benchmark(train_step, state, next(batches(setup, 0)), setup.config)
        return
    seconds: dict[str, list[float]] = {"ladder": [], "notebook": []}
    for _ in range(WINDOWS):
        begun = time.perf_counter()
        notebook.train_epoch(*theirs)
        seconds["notebook"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        our_epoch(*ours)
        seconds["ladder"].append(time.perf_counter() - begun)
    benchmark.pedantic(our_epoch, args=ours, rounds=1)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    floor = FLOP / matrix_rate
    result = {
        "what": "seconds of one MNIST epoch, batch 128",
        "seconds": seconds,
        "ratio_of_medians": medians["ladder"] / medians["notebook"],
        "matrix_rate_gflops": matrix_rate / 1e9,
        "floor_seconds": floor,
        "multiple_of_floor": medians["ladder"] / floor,
        "peak_memory_gib": peak_memory_in_a_new_process(MEMORY) / 2**30,
    }
    benchmark.extra_info.update(result)
    print()
    for name, value in result.items():
        print(f"{name:<20} {value}")
    print(write_result("epoch", result).name)
