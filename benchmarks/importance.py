"""The importance-weighted bound with many samples: the encoder once, beside the whole model.

    python benchmarks/importance.py                                       # mnist_2layer, K = 5000
    python benchmarks/importance.py --preset tiny_vdvae --samples 50 --images 4     # a rehearsal
    python benchmarks/importance.py --rows 128 512 2048 8192              # other chunks beside it
    python benchmarks/importance.py --device cuda --images 1000

Rounds alternate between the whole model on data repeated K times, 4,096 rows at once, and
`iw_elbo`, which does once what no noise reaches; so a machine that is busy now and then is busy
for both. On a CPU the time is this process's CPU time with one thread; on a GPU it is wall time.
The share of the matrix rate counts products alone, as `torch.utils.flop_counter` does, beside
products of 1024 x 1024 matrices (8192 on a GPU) measured in every round.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import write_result
from einops import rearrange, repeat
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ladder.bench.memory import forget_peak, peak_gib
from ladder.build import build_model
from ladder.model import HierarchicalVAE
from ladder.objectives import iw_elbo, per_datum

WHOLE, ONCE = "whole model", "encoder once"
SET, K = 10_000, 5_000  # what the time is projected to
WHOLE_ROWS = 4096

Way = Callable[[HierarchicalVAE, Tensor, int], Tensor]


def whole(model: HierarchicalVAE, x: Tensor, samples: int) -> Tensor:
    """The bound from the whole model on data repeated."""
    chunk = max(1, WHOLE_ROWS // x.shape[0])
    total = x.new_full((x.shape[0],), -math.inf)
    for done in range(0, samples, chunk):
        k = min(chunk, samples - done)
        many = repeat(x, "b ... -> (k b) ...", k=k)
        px, latents = model(many)
        weight = per_datum(px.log_prob(many))
        for v in latents.values():
            assert v.q is not None
            weight = weight + per_datum(v.p.log_prob(v.z) - v.q.log_prob(v.z))
        total = torch.logaddexp(total, rearrange(weight, "(k b) -> k b", k=k).logsumexp(dim=0))
    return total - math.log(samples)


def ways(rows: list[int]) -> dict[str, Way]:
    """What takes turns."""
    others = {f"{ONCE}, {r} rows": _once(r) for r in rows}
    return {WHOLE: whole, ONCE: _once(None), **others}


def _once(rows: int | None) -> Way:
    return lambda model, x, samples: iw_elbo(model, x, samples, rows)


def make(preset: str, images: int, device: str) -> tuple[HierarchicalVAE, Tensor]:
    """An untrained model and black and white data of its shape."""
    torch.manual_seed(0)
    model = build_model(preset=preset).eval().to(device)
    assert model.shape is not None
    return model, (torch.rand(images, *model.shape) < 0.3).float().to(device)


def seconds(device: str, work: Callable[[], Any]) -> float:
    """Time of `work`: of the process on a CPU, of the clock on a GPU."""
    cuda = device.startswith("cuda")
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    begun = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - begun


def matrix_rate(device: str) -> float:
    """Measured float32 matrix products, FLOP/s."""
    n = 8192 if device.startswith("cuda") else 1024
    a = torch.rand(n, n, device=device)
    return 2 * n**3 / min(seconds(device, lambda: a @ a) for _ in range(10))


def products(model: HierarchicalVAE, x: Tensor, samples: int, way: Way) -> float:
    """FLOP of the products for each image."""
    with FlopCounterMode(display=False) as counter:
        way(model, x, samples)
    return float(counter.get_total_flops()) / len(x)


def peak_in_a_new_process(*words: Any) -> float:
    """What `peak` returns there."""
    code = f"import importance, torch; torch.set_num_threads(1); print(importance.peak{words})"
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    return float(child.stdout)


@torch.inference_mode()
def peak(preset: str, images: int, samples: int, device: str, name: str) -> float:
    """Most memory of one way in GiB; without the name of one, of what every way has."""
    model, x = make(preset, images, device)
    forget_peak(device)
    if name in (WHOLE, ONCE):
        ways([])[name](model, x, samples)
    return peak_gib(device)


@torch.inference_mode()
def measure(
    preset: str, samples: int, images: int, device: str, rows: list[int], rounds: int
) -> dict[str, Any]:
    """Every way's seconds, shares and memory, and ratios to the whole model."""
    model, x = make(preset, images, device)
    choices = ways(rows)
    flops = {name: products(model, x[:2], samples, way) for name, way in choices.items()}
    times: dict[str, list[float]] = {name: [] for name in choices}
    shares: dict[str, list[float]] = {name: [] for name in choices}
    rates, bounds = [], {}
    for _ in range(rounds):
        rates.append(matrix_rate(device))
        for name, way in choices.items():
            begun = seconds(device, lambda n=name, w=way: bounds.update({n: w(model, x, samples)}))
            times[name].append(begun / images)
            shares[name].append(flops[name] / times[name][-1] / rates[-1])
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "samples": samples,
        "images": images,
        "rounds": rounds,
        "matrix_rate_gflops": [rate / 1e9 for rate in rates],
        "mean_bound": {name: bound.mean().item() for name, bound in bounds.items()},
        "gflop_of_products_per_image": {name: f / 1e9 for name, f in flops.items()},
        "seconds_per_image": times,
        "median_seconds_per_image": median,
        "median_share_of_matrix_rate": {n: statistics.median(v) for n, v in shares.items()},
        "times_as_fast": {name: median[WHOLE] / value for name, value in median.items()},
        f"hours_for_{SET}_images_of_{K}_samples": {
            name: value / samples * K * SET / 3600 for name, value in median.items()
        },
        "peak_gib": {
            name: peak_in_a_new_process(preset, images, samples, device, name)
            for name in ("nothing", WHOLE, ONCE)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["mnist_2layer"])
    parser.add_argument("--samples", type=int, default=K)
    parser.add_argument("--images", type=int, default=32, help="all at once, as one batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", nargs="*", type=int, default=[], help="beside the default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", help="a sentence that is kept, such as what else was running")
    words = parser.parse_args()
    if words.device == "cpu":
        torch.set_num_threads(1)
    found = {}
    for preset in words.preset:
        found[preset] = measure(
            preset, words.samples, words.images, words.device, words.rows, words.rounds
        )
        for name, share in found[preset]["median_share_of_matrix_rate"].items():
            time_each = found[preset]["median_seconds_per_image"][name]
            ratio = found[preset]["times_as_fast"][name]
            print(f"{preset} {name:<26} {time_each:8.4f} s/image {share:6.1%} {ratio:5.2f} x")
    print(write_result("importance", {"presets": found, "note": words.note}, words.device))


if __name__ == "__main__":
    main()
