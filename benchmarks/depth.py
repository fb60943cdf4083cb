"""Cost against depth: step time, memory and graphs of declared ladders, 5 to 80 layers.

    python benchmarks/depth.py --device cpu
    python benchmarks/depth.py --device cuda --compile

Windows of the depths alternate, so that a busy machine slows all of them; a point is the median of
its windows, the line a least-squares fit, and R^2 says how straight the points lie.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import write_result

from ladder.build import resolve
from ladder.config import Config, ModelConfig
from ladder.report.canvas import new_figure, plain, png
from ladder.train.state import State, new_state
from ladder.train.step import train_step

DEPTHS = [5, 10, 20, 40, 80]
KINDS: dict[str, dict[str, Any]] = {
    "convolutional": {"channels": 4, "resolution": 16, "width": 32, "blocks": 1},
    "dense": {"dim": 16, "hidden": [256]},
}


class Case(NamedTuple):
    """A model ready to train."""

    config: Config[ModelConfig]
    state: State


def make(kind: str, depth: int, device: str, compiled: bool) -> Case:
    """A ladder of so many equal layers."""
    layers = [{**KINDS[kind], "repeat": depth}]
    model = {"system": "hierarchy", "shape": [1, 16, 16], "inference": "ladder", "layers": layers}
    train = {"steps": 1, "batch_size": 16, "device": device}
    config = resolve({"model": model, "data": {"name": "digits"}, "train": train})
    state = new_state(config, torch.device(device))
    if compiled:
        parts = [*state.model.bottom_up.rungs.values(), *state.model.top_down.layers.values()]
        for part in parts:
            part.compile(fullgraph=True, dynamic=False)
    return Case(config, state)


def seconds(case: Case, steps: int) -> float:
    """Mean time of a training step over a window."""
    device = case.state.failed.device
    x = torch.rand(16, 1, 16, 16, device=device)
    _wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        train_step(case.state, x, case.config)
    _wait(device)
    return (time.perf_counter() - begun) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    kind: str, device: str = "cpu", compiled: bool = False, windows: int = 5, steps: int = 4
) -> dict[str, Any]:
    """Step time at every depth, and the line through the medians."""
    graphs, first, memory, cases = {}, {}, {}, {}
    for depth in DEPTHS:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        cases[depth] = make(kind, depth, device, compiled)
        first[depth] = seconds(cases[depth], 1)
        graphs[depth] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        if device.startswith("cuda"):
            memory[depth] = torch.cuda.max_memory_allocated() / 2**20
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(windows):
        for depth, case in cases.items():
            times[depth].append(seconds(case, steps))
    medians = {depth: statistics.median(values) for depth, values in times.items()}
    slope, offset, straight = line(medians)
    return {
        "kind": kind,
        "layer": KINDS[kind],
        "batch": 16,
        "compiled": compiled,
        "seconds": times,
        "medians": medians,
        "seconds_per_layer": slope,
        "offset_seconds": offset,
        "r_squared": straight,
        "first_step_seconds": first,
        "graphs": graphs if compiled else None,
        "peak_memory_mib": memory or None,
    }


def line(medians: dict[int, float]) -> tuple[float, float, float]:
    """Slope, offset and R^2 of the least-squares line."""
    x, y = np.array(list(medians)), np.array(list(medians.values()))
    slope, offset = np.polyfit(x, y, 1)
    rest = y - (slope * x + offset)
    return float(slope), float(offset), float(1.0 - rest.var() / y.var())


def picture(results: list[dict[str, Any]]) -> bytes:
    """Step time against depth, with the fitted lines."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for result in results:
        x, y = list(result["medians"]), [1e3 * s for s in result["medians"].values()]
        (points,) = axes.plot(x, y, "o", label=result["kind"])
        ends = np.array([0, max(DEPTHS)])
        fit = 1e3 * (result["seconds_per_layer"] * ends + result["offset_seconds"])
        slope, straight = 1e3 * result["seconds_per_layer"], result["r_squared"]
        label = f"{slope:.2f} ms per layer, R² {straight:.4f}"
        axes.plot(ends, fit, color=points.get_color(), alpha=0.6, label=label)
    plain(axes, "A training step against the number of layers", "stochastic layers", "ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--windows", type=int, default=5)
    arguments = parser.parse_args()
    results = [
        measure(kind, arguments.device, arguments.compile, arguments.windows) for kind in KINDS
    ]
    for result in results:
        print(result["kind"], {k: round(1e3 * v, 1) for k, v in result["medians"].items()}, "ms")
        print("  R^2", round(result["r_squared"], 4), "graphs", result["graphs"])
    name = "depth-compiled" if arguments.compile else "depth"
    path: Path = write_result(name, {"runs": results}, arguments.device)
    path.with_suffix(".png").write_bytes(picture(results))
    print(path)


if __name__ == "__main__":
    main()
