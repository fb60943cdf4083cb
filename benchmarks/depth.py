"""Cost against depth: step time, memory and graphs of declared ladders, 5 to 80 layers.

    python benchmarks/depth.py --device cpu
    python benchmarks/depth.py --device cuda --mode eager compiled graph

Windows of the depths alternate, so that a busy machine slows all of them; a point is the median of
its windows, on one CPU thread of this process's CPU time, which other work hardly disturbs. Lines
are least-squares fits, and R^2 says how straight the points lie. `kept_mib` is what autograd keeps
of a batch, counted on the meta device; `peak_mib` the most memory of a process of its own that
does such steps, on a GPU of its tensors. Graphs are those of the layers compiled one by one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import write_result
from torch import Tensor

from ladder.bench.case import MODES, Case, images
from ladder.bench.child import in_a_process
from ladder.bench.measure import How, wait
from ladder.bench.trainee import trainee
from ladder.build import resolve
from ladder.parse import to_yaml
from ladder.report.canvas import new_figure, plain, png
from ladder.train.plan import plan

DEPTHS = [5, 10, 20, 40, 80]
BATCH = 16
KINDS: dict[str, dict[str, Any]] = {
    "convolutional": {"channels": 4, "resolution": 16, "width": 32, "blocks": 1},
    "dense": {"dim": 16, "hidden": [256]},
}
ONCE = How(windows=1, steps=2, warmup=1, sample_batch=0, samples=0)


class Graphs(NamedTuple):
    """What compiling came to."""

    graphs: int
    breaks: int


def case(kind: str, depth: int, device: str = "cpu", mode: str = "eager") -> Case:
    """A ladder of so many equal layers, in a file."""
    layers = [{**KINDS[kind], "repeat": depth}]
    model = {"system": "hierarchy", "shape": [1, 16, 16], "inference": "ladder", "layers": layers}
    config = resolve({"model": model, "data": {"name": "digits"}, "train": {"steps": 1}})
    path = Path(tempfile.gettempdir()) / f"ladder-depth-{kind}-{depth}.yaml"
    path.write_text(to_yaml(config))
    return Case(str(path), [], BATCH, device, mode=mode)


def stepper(chosen: Case) -> Callable[[], None]:
    """What does a training step of it."""
    ready, x = trainee(chosen), images(chosen, chosen.batch)
    return lambda: ready.step(x)


def seconds(step: Callable[[], None], device: str, steps: int) -> float:
    """Mean time of a training step over a window: of the CPU, or on a GPU of the clock."""
    now = time.process_time if device == "cpu" else time.perf_counter
    wait(device)
    begun = now()
    for _ in range(steps):
        step()
    wait(device)
    return (now() - begun) / steps


def kept_mib(kind: str, depth: int) -> float:
    """What autograd keeps of a batch."""
    chosen = case(kind, depth)
    config = resolve(chosen.preset, [f"train.batch_size={BATCH}"])
    return float(plan(config)["memory_mib"]["activations"])


def graphs(kind: str, depth: int, backend: str = "aot_eager") -> Graphs:
    """Of a training step in which every layer is compiled by itself."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    chosen = case(kind, depth, mode="compiled")
    ready = trainee(chosen._replace(batch=2, backend=backend))
    x: Tensor = images(chosen, 2)
    ready.step(x)
    return Graphs(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))


def measure(
    kind: str, device: str = "cpu", mode: str = "eager", windows: int = 5, steps: int = 4
) -> dict[str, Any]:
    """Time, memory and graphs at every depth, and the lines through them."""
    alone = {d: in_a_process("step", case(kind, d, device, mode), ONCE) for d in DEPTHS}
    peaks = {depth: row["peak_memory_gib"] * 1024 for depth, row in alone.items()}
    ways = {depth: stepper(case(kind, depth, device, mode)) for depth in DEPTHS}
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for window in range(windows + 1):  # the first one warms up
        for depth, step in ways.items():
            taken = seconds(step, device, steps)
            times[depth] += [taken] if window else []
    medians = {depth: statistics.median(values) for depth, values in times.items()}
    kept = {depth: kept_mib(kind, depth) for depth in DEPTHS}
    counted = {depth: graphs(kind, depth) for depth in DEPTHS}
    return {
        "kind": kind,
        "layer": KINDS[kind],
        "batch": BATCH,
        "mode": mode,
        "clock": "CPU seconds" if device == "cpu" else "seconds",
        "seconds": times,
        "medians": medians,
        "time_line": line(medians)._asdict(),
        "kept_mib": kept,
        "kept_line": line(kept)._asdict(),
        "peak_mib": peaks,
        "peak_line": line(peaks)._asdict(),
        "first_step_seconds": {depth: row["first_step_seconds"] for depth, row in alone.items()},
        "graphs": {depth: count.graphs for depth, count in counted.items()},
        "graph_breaks": {depth: count.breaks for depth, count in counted.items()},
    }


class Line(NamedTuple):
    """A least-squares line."""

    slope: float
    offset: float
    r_squared: float


def line(points: dict[int, float]) -> Line:
    """The line through values by depth."""
    x, y = np.array(list(points), dtype=float), np.array(list(points.values()))
    slope, offset = np.polyfit(x, y, 1)
    rest = y - (slope * x + offset)
    straight = 1.0 - rest.var() / y.var() if y.var() else 1.0
    return Line(float(slope), float(offset), float(straight))


def picture(results: list[dict[str, Any]]) -> bytes:
    """Time, memory and graphs against depth, with the fitted lines."""
    figure = new_figure(12.6, 3.9)
    time_axes, memory_axes, graph_axes = figure.subplots(1, 3)
    many = len({result["mode"] for result in results}) > 1
    for number, result in enumerate(results):
        colour = f"C{number}"
        name = f"{result['kind']}, {result['mode']}" if many else result["kind"]
        panel(time_axes, name, colour, scaled(result, "medians", "time_line", 1e3), "ms")
        panel(memory_axes, name, colour, scaled(result, "kept_mib", "kept_line", 1.0), "MiB")
        depths, counts = list(map(int, result["graphs"])), list(result["graphs"].values())
        graph_axes.plot(depths, counts, "o-", color=colour, label=f"{name}: {counts[-1]}")
    cpu = results[0]["clock"] == "CPU seconds"
    plain(time_axes, "Training step", "stochastic layers", "CPU ms" if cpu else "ms")
    plain(memory_axes, "Kept for the backward pass", "stochastic layers", "MiB")
    plain(graph_axes, "Graphs, compiled by layers", "stochastic layers", "graphs")
    graph_axes.locator_params(axis="y", integer=True)
    for axes in (time_axes, memory_axes, graph_axes):
        axes.set_xlim(0, max(DEPTHS) + 4)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    graph_axes.legend(frameon=False, fontsize=9, loc="lower left")
    figure.tight_layout(w_pad=2.5)
    return png(figure)


def scaled(
    result: dict[str, Any], values: str, fit: str, by: float
) -> tuple[dict[int, float], Line]:
    """Points and their line, in another unit."""
    found = Line(**result[fit])
    line = Line(found.slope * by, found.offset * by, found.r_squared)
    return {int(depth): by * value for depth, value in result[values].items()}, line


def panel(
    axes: Any, name: str, colour: str, points: tuple[dict[int, float], Line], unit: str
) -> None:
    """Points and their line."""
    values, fit = points
    label = f"{name}: {fit.slope:.3g} {unit} a layer, R² {fit.r_squared:.4f}"
    ends = np.array([0, max(DEPTHS)])
    axes.plot(ends, fit.slope * ends + fit.offset, color=colour, alpha=0.6)
    axes.plot(list(values), list(values.values()), "o", color=colour, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", nargs="+", default=["eager"], choices=MODES)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in a window")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    words = parser.parse_args()
    DEPTHS[:] = words.depths
    results = [
        measure(kind, words.device, mode, words.windows, words.steps)
        for kind in KINDS
        for mode in words.mode
    ]
    for result in results:
        print(result["kind"], {k: round(1e3 * v, 1) for k, v in result["medians"].items()}, "ms")
        print("  R^2", round(result["time_line"]["r_squared"], 4), "graphs", result["graphs"])
    path: Path = write_result("depth", {"runs": results}, words.device)
    path.with_suffix(".png").write_bytes(picture(results))
    print(path)


if __name__ == "__main__":
    main()
