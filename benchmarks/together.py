"""Small models that train together in one pass, beside the same models one after another.

    python benchmarks/together.py --models 1 4 16
    python benchmarks/together.py --device cuda --models 1 8 64 --batch 128 4096
    python benchmarks/together.py --models 2 --rounds 2 --steps 2        # a rehearsal

Both ways take turns on the same data, so that a busy machine is busy for both; the first round is
the warm-up. A model alone takes its steps as `ladder train` does, on a GPU as a captured graph.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import write_result

from ladder.build import resolve
from ladder.train.course import Course
from ladder.train.loop import started, stepper
from ladder.train.together import Together


def courses(preset: str, models: int, batch: int, device: str, out: Path) -> list[Course]:
    """Trainings that differ in their seeds."""
    words = ["train.steps=1000000", f"train.batch_size={batch}", f"train.device={device}"]
    configs = [resolve(preset, [*words, f"train.seed={k}"]) for k in range(models)]
    return [started(config, out / str(k), quiet=True) for k, config in enumerate(configs)]


def seconds(work: Callable[[], Any], steps: int, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of a step."""
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        work()
    _wait(device)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def measure(models: int, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    device = arguments.device
    with tempfile.TemporaryDirectory() as folder:
        ours = courses(arguments.preset, models, batch, device, Path(folder) / "together")
        theirs = courses(arguments.preset, models, batch, device, Path(folder) / "alone")
    together, alone = Together(ours), [stepper(course) for course in theirs]

    def one_after_another() -> None:
        for advance in alone:
            advance()

    ways = {"together": together, "one after another": one_after_another}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds + 1):
        for name, work in ways.items():
            seen[name].append(seconds(work, arguments.steps, device))
    medians = {
        name: [statistics.median(column) for column in zip(*times[1:], strict=True)]
        for name, times in seen.items()
    }
    ratios = [
        a / b for a, b in zip(medians["one after another"], medians["together"], strict=True)
    ]
    return {
        "preset": arguments.preset,
        "models": models,
        "batch": batch,
        "rounds": arguments.rounds,
        "steps_in_a_round": arguments.steps,
        "seconds_of_a_step_of_all": {name: v[0] for name, v in medians.items()},
        "cpu_seconds_of_a_step_of_all": {name: v[1] for name, v in medians.items()},
        "times_as_fast": ratios[0],
        "times_as_fast_by_cpu_time": ratios[1],
        "every_round": {name: times[1:] for name, times in seen.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mnist_2layer")
    parser.add_argument("--models", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="in a round")
    parser.add_argument("--note", help="a sentence that is kept, such as what else was running")
    arguments = parser.parse_args()
    runs = [measure(m, b, arguments) for b in arguments.batch for m in arguments.models]
    for run in runs:
        print(
            f"{run['models']:>4} models, batch {run['batch']:>5}: "
            f"{run['times_as_fast']:.2f} times as fast ({run['times_as_fast_by_cpu_time']:.2f} "
            "by CPU time)"
        )
    print(write_result("together", {"runs": runs, "note": arguments.note}, arguments.device))


if __name__ == "__main__":
    main()
