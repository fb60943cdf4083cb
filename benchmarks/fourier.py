"""A convolution with a kernel as large as its map, directly and by Fourier transforms, in turn.

    python benchmarks/fourier.py
    python benchmarks/fourier.py --batch 48 --device cuda

Each row is a head of `biva_cifar10` forward and backward: seconds are medians of rounds in which
both ways take turns, and `differs` is the largest difference of their outputs over the largest
output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from conftest import RESULTS, machine
from torch import Tensor
from torch.nn import functional as F

from ladder.fourier import convolve

HEADS = [(76, 16), (40, 16), (36, 8), (24, 8)]  # outputs, and extent of map and kernel
CHANNELS = 96


def measure(batch: int, out: int, size: int, rounds: int, device: str) -> dict[str, Any]:
    """A row: both ways in turn."""
    torch.manual_seed(0)
    x = torch.randn(batch, CHANNELS, size, size, device=device, requires_grad=True)
    weight = torch.randn(out, CHANNELS, size, size, device=device, requires_grad=True)
    before, after = (size - 1) // 2, size // 2
    ways: dict[str, Callable[[], Tensor]] = {
        "direct": lambda: F.conv2d(F.pad(x, (before, after, before, after)), weight),
        "fourier": lambda: convolve(x, weight, before),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    outputs = {}
    for _ in range(rounds + 1):  # the first one warms up
        for name, way in ways.items():
            begun = now(device)
            outputs[name] = way()
            outputs[name].sum().backward()
            taken[name].append(now(device) - begun)
    seconds = {name: statistics.median(values[1:]) for name, values in taken.items()}
    direct, fourier = (outputs[name].detach() for name in ways)
    largest, apart = direct.abs().max(), (direct - fourier).abs().max()
    return {
        "batch": batch,
        "out": out,
        "kernel": size,
        **seconds,
        "ratio": seconds["direct"] / seconds["fourier"],
        "differs": float(apart / largest),
    }


def now(device: str) -> float:
    """CPU time of this process, which other work does not count in; on a GPU the clock's."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16, 48])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    rows = []
    for batch in arguments.batch:
        for out, size in HEADS:
            rows.append(measure(batch, out, size, arguments.rounds, arguments.device))
            print({k: round(v, 5) if isinstance(v, float) else v for k, v in rows[-1].items()})
    version = torch.__version__.split("+")[0]
    path = RESULTS / f"benchmark-fourier-{arguments.device}-float32-pt{version}.json"
    record = {"what": "CPU seconds, forward and backward, one thread", "rows": rows}
    path.write_text(json.dumps({**record, "machine": machine(arguments.device)}, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
