"""What the penalties of weights add to a training step.

    python benchmarks/penalties.py                                   # nvae_cifar10, batch 8
    python benchmarks/penalties.py --preset tiny_nvae --batch 4      # a rehearsal
    python benchmarks/penalties.py --device cuda --batch 32

One model takes turns: a step without penalties, one with the spectral penalty, one with both, and
again, on random bytes; so a machine that is busy now and then is busy for all. Of each kind the
medians are kept, of wall time and of this process's CPU time; the first round is the warm-up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from conftest import write_result
from torch import Tensor

from ladder.build import resolve
from ladder.config import Config, ModelConfig, ObjectiveConfig
from ladder.train.meter import Meter
from ladder.train.penalising import Penalising
from ladder.train.state import State, choose_device, new_state
from ladder.train.step import train_step

TOTAL = 78_400  # steps of the published training; the rate of the first ones is all it decides


def kinds(state: State, objective: ObjectiveConfig) -> dict[str, Penalising | None]:
    """The penalties that take turns."""
    assert objective.penalties is not None
    alone = objective.penalties.model_copy(update={"batch_norm": 0.0})
    spectral = Penalising(objective.model_copy(update={"penalties": alone}), state.model)
    return {"none": None, "spectral": spectral, "both": Penalising(objective, state.model)}


def measure(
    preset: str, batch: int, device: str, rounds: int, overrides: list[str]
) -> dict[str, Any]:
    """Every step's seconds by kind, medians, and ratios to the step without penalties."""
    config = resolve(preset, overrides)
    state = new_state(config, choose_device(device), total=TOTAL)
    shape = (batch, *config.model.shape)
    x = torch.randint(256, shape, device=next(state.model.parameters()).device) / 255
    seen: dict[str, list[list[float]]] = {}
    choices = kinds(state, config.objective)
    for _ in range(rounds + 1):
        for name, state.penalising in choices.items():
            seen.setdefault(name, []).append(timed(state, x, config))
    kept = {name: values[1:] for name, values in seen.items()}
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in kept.items()
    }
    return {
        "preset": preset,
        "overrides": overrides,
        "batch": batch,
        "rounds": rounds,
        "seconds": {name: [v[0] for v in values] for name, values in kept.items()},
        "cpu_seconds": {name: [v[1] for v in values] for name, values in kept.items()},
        "median_seconds": {name: v[0] for name, v in medians.items()},
        "median_cpu_seconds": {name: v[1] for name, v in medians.items()},
        "added_share_of_seconds": {
            name: v[0] / medians["none"][0] - 1 for name, v in medians.items()
        },
        "added_share_of_cpu_seconds": {
            name: v[1] / medians["none"][1] - 1 for name, v in medians.items()
        },
    }


def timed(state: State, x: Tensor, config: Config[ModelConfig]) -> list[float]:
    """Wall and CPU seconds of one step."""
    state.meter = Meter(x.device)  # kinds have other metrics
    _synchronise(x)
    wall, cpu = time.perf_counter(), time.process_time()
    train_step(state, x, config)
    _synchronise(x)
    return [time.perf_counter() - wall, time.process_time() - cpu]


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--preset", default="nvae_cifar10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--note", help="a sentence that is kept, such as what else was running")
    words = parser.parse_intermixed_args()
    result = measure(words.preset, words.batch, words.device, words.rounds, words.overrides)
    path = write_result("penalties", {**result, "note": words.note}, words.device)
    for name, share in result["added_share_of_seconds"].items():
        cpu = result["added_share_of_cpu_seconds"][name]
        print(f"{name:<9} {result['median_seconds'][name]:8.2f} s  {share:+.1%}  (CPU {cpu:+.1%})")
    print(path)


if __name__ == "__main__":
    main()
