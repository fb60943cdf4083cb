"""A training step of ours beside that of a plain loop (`plain_loop.py`).

    python benchmarks/plain.py                                   # every case
    python benchmarks/plain.py vdvae_cifar10 --mode eager compiled --precision float32 bfloat16
    python benchmarks/plain.py mnist_2layer=64 --rounds 20       # another batch

One process, random bytes, the same model twice; in every round the plain loop and each way of ours
take turns, so a machine that is busy now and then is busy for all. Medians over the rounds are
kept of wall time and of this process's CPU time, which other work hardly disturbs. `share` is the
rate at which a step computes over that of matrix products of 2048 x 2048 in float32 and the same
minutes, where a step counts as many operations as its networks have in torch's own layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from conftest import RESULTS, write_result
from plain_loop import Plain, ordinary
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ladder.bench.case import Case, configured, images
from ladder.bench.trainee import trainee
from ladder.build import build_model, resolve

Step = Callable[[Tensor], None]

CASES = {  # batches that a CPU can do in seconds; None takes the preset's
    "mnist_2layer": None,
    "lvae_mnist": None,
    "lvae_conv_mnist": None,
    "benchmarks/conv_ladder.yaml": None,
    "configs/vdvae_small.yaml": None,
    "vdvae_cifar10": 4,
    "nvae_mnist": 4,
    "biva_mnist": 8,
}
SHORTEST = 0.2  # seconds of a turn, which is as many steps as that takes


def turn(step: Step, x: Tensor, times: int) -> list[float]:
    """Wall and CPU seconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        step(x)
    return [(time.perf_counter() - wall) / times, (time.process_time() - cpu) / times]


def matrix_rate(dtype: torch.dtype, n: int = 2048) -> float:
    """Measured matrix products, FLOP per CPU second."""
    a = torch.rand(n, n).to(dtype)
    taken = []
    for _ in range(4):
        begun = time.process_time()
        a @ a
        taken.append(time.process_time() - begun)
    return 2 * n**3 / min(taken)


def measure(case: Case, ways: list[tuple[str, str]], rounds: int) -> list[dict[str, Any]]:
    """A row for each way, that is (mode, precision), all in turn with the plain loop."""
    x = images(case, case.batch)
    steps: dict[Any, Step] = {"plain": Plain(configured(case._replace(channels_last=None)))}
    first = {}
    for mode, precision in ways:
        step = trainee(case._replace(mode=mode, precision=precision)).step
        steps[mode, precision] = step
        first[mode, precision] = turn(step, x, 1)[0]
    rates = [matrix_rate(torch.float32)]
    lengths = {name: turn(step, x, 1)[0] for name, step in steps.items()}
    times = {name: max(1, int(SHORTEST / length)) for name, length in lengths.items()}
    taken: dict[Any, list[list[float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(turn(step, x, times[name]))
    rates.append(matrix_rate(torch.float32))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)]
        for name, values in taken.items()
    }
    flops, rate = plain_flops(case), max(rates)
    shared = {
        "preset": case.preset,
        "batch": case.batch,
        "channels_last": case.channels_last,
        "rounds": rounds,
        "flops_per_step": flops,
        "matrix_rate_gflops": rate / 1e9,
        "plain_seconds": medians["plain"][0],
        "plain_cpu_seconds": medians["plain"][1],
        "plain_share": flops / medians["plain"][1] / rate,
    }
    return [
        {
            **shared,
            "mode": mode,
            "precision": precision,
            "seconds": medians[mode, precision][0],
            "cpu_seconds": medians[mode, precision][1],
            "ratio": medians["plain"][0] / medians[mode, precision][0],
            "cpu_ratio": medians["plain"][1] / medians[mode, precision][1],
            "share": flops / medians[mode, precision][1] / rate,
            "first_step_seconds": first[mode, precision],
        }
        for mode, precision in ways
    ]


def plain_flops(case: Case) -> int:
    """FLOPs of the networks of a step in torch's own layers: forward, and twice that backward."""
    # Shapes are enough to count; two data, because batch norm refuses one. Only forward, because
    # torch's counter takes the backward pass of a convolution by groups for one without.
    with torch.device("meta"):
        model = build_model(config=configured(case))
    ordinary(model)
    with FlopCounterMode(display=False) as counter:
        x = torch.empty(2, *configured(case).model.shape, device="meta")
        model(x)
    total: int = counter.get_total_flops()
    return 3 * case.batch * total // 2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="PRESET[=BATCH]")
    parser.add_argument("--batch", type=int, help="for all of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mode", nargs="+", default=["eager"], choices=["eager", "compiled"])
    parser.add_argument(
        "--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="ours, whatever the library's rule"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="keep other rows of the results")
    parser.add_argument("--note", help="a sentence that is kept, such as what else was running")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    ways = list(product(words.mode, words.precision))
    rows = earlier() if words.append else []
    for word in words.cases or CASES:
        name, _, batch = word.partition("=")
        case = Case(name, [], 1)
        size = words.batch or int(batch or CASES.get(name) or 0) or default_batch(name)
        last = True if words.channels_last else None
        case = case._replace(batch=size, channels_last=last)
        new = measure(case, ways, words.rounds)
        new = [{**row, "threads": words.threads, "note": words.note} for row in new]
        rows = [row for row in rows if not any(same(row, other) for other in new)] + new
        for row in new:
            print(line(row), flush=True)
        path = write_result("plain", {"rows": rows})
        gc.collect()
        torch.compiler.reset()
    print(path)


def default_batch(name: str) -> int:
    """The preset's own batch."""
    return resolve(name, []).train.batch_size


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a row measures what another does."""
    keys = ("preset", "batch", "mode", "precision", "threads", "channels_last")
    return all(row[key] == other[key] for key in keys)


def earlier() -> list[dict[str, Any]]:
    """Rows of the results that are there."""
    version = torch.__version__.split("+")[0]
    path = RESULTS / f"benchmark-plain-cpu-float32-pt{version}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def line(row: dict[str, Any]) -> str:
    """What is printed of a row."""
    return (
        f"{row['preset']:<28} {row['batch']:>4} {row['mode']:<8} {row['precision']:<8} "
        f"{'last' if row['channels_last'] else '':<4} "
        f"plain {row['plain_cpu_seconds']:8.4f} s ({row['plain_share']:.0%})  "
        f"ours {row['cpu_seconds']:8.4f} s ({row['share']:.0%})  "
        f"x{row['cpu_ratio']:.2f} (wall x{row['ratio']:.2f})"
    )


if __name__ == "__main__":
    main()
