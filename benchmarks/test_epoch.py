"""An epoch of the digits as `ladder train` does it; MNIST's is `mnist_2layer_modes.py`'s.

pytest benchmarks/test_epoch.py --device cpu
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_2layer_modes import MODES

from ladder.build import resolve
from ladder.train.loop import started, stepper


def test_epoch(benchmark: Any, tmp_path: Path, device: str) -> None:
    words = ["data=digits", f"train.device={device}", *MODES["eager"]]
    course = started(resolve("mnist_2layer", words), tmp_path / "run", quiet=True)
    advance, state = stepper(course), course.state

    def epoch() -> float:
        state.meter.clear()
        for _ in range(course.setup.steps_per_epoch):
            advance()
        return state.meter.read()["train/loss"]

    first = epoch()
    last = benchmark(epoch)
    assert last < first
    assert state.step % course.setup.steps_per_epoch == 0
    assert state.meter.data == len(course.setup.images) == 1497
