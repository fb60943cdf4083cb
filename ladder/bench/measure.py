"""Times, graphs, memory and shares of the matrix rate of one case, in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ladder.bench.case import Case, configured, images
from ladder.bench.memory import forget_peak, limit_memory, peak_gib
from ladder.bench.trainee import Trainee
from ladder.build import build_model
from ladder.objectives import elbo

BOUNDED = 16  # data whose importance-weighted bound is taken, or a batch if that is less
Make = Callable[[Case], Trainee]


class How(NamedTuple):
    """How to measure, which no result depends on.

    Attributes:
        windows: Times that are taken; the median counts.
        steps: Training steps in a window.
        warmup: Training steps after the first one, before the first window.
        sample_batch: Samples drawn at once; 0 draws none.
        samples: K of the importance-weighted bound; 0 leaves it out, and encoding too.
        limit_gib: Memory that the process may take; `None` for all.
        least: Batch that the search for the largest one tries first.
        most: Batch that it does not go beyond.
    """

    windows: int = 5
    steps: int = 5
    warmup: int = 3
    sample_batch: int = 64
    samples: int = 64
    limit_gib: float | None = None
    least: int = 1
    most: int = 4096


def measure(case: Case, how: How, make: Make) -> dict[str, Any]:
    """Training steps, then samples, latents and bounds.

    Args:
        case: What to measure.
        how: How.
        make: Makes the model that the case names.

    Returns:
        Plain values by name.
    """
    if how.limit_gib is not None:
        limit_memory(case.device, how.limit_gib)
    trainee, x = make(case), images(case, case.batch)
    rates = [matrix_rate(case)]
    found = training(case, how, trainee, x)
    found |= inference(case, how, trainee, x)
    rates.append(matrix_rate(case))
    flops = case.batch * flops_per_datum(case)
    best = max(rates)
    return {
        "parameters": trainee.parameters,
        **found,
        **trainee.counts(),
        "matrix_rate_gflops": [rate / 1e9 for rate in rates],
        "best_matrix_rate_gflops": best / 1e9,
        "tflops_per_step": flops / 1e12,
        "share_of_matrix_rate": flops / found["seconds_per_step"] / best,
    }


def training(case: Case, how: How, trainee: Trainee, x: Tensor) -> dict[str, Any]:
    """Windows of training steps on one batch."""
    counters = torch._dynamo.utils.counters
    first = seconds(case.device, lambda: trainee.step(x))
    for _ in range(how.warmup):
        trainee.step(x)
    compiled = case.mode == "compiled"
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    forget_peak(case.device)
    begun = time.process_time()
    times = [seconds(case.device, lambda: trainee.step(x), how.steps) for _ in range(how.windows)]
    # What a busy machine disturbs least, as long as there is one thread.
    cpu = (time.process_time() - begun) / (how.windows * how.steps)
    peak, median = peak_gib(case.device, case.mode == "graph"), statistics.median(times)
    return {
        "seconds": times,
        "seconds_per_step": median,
        "cpu_seconds_per_step": cpu,
        "images_per_s": case.batch / median,
        "first_step_seconds": first,
        "compile_seconds": first - median if compiled else None,
        "graphs": graphs if compiled else None,
        "graph_breaks": breaks if compiled else None,
        "peak_memory_gib": peak,
        "steps_in_a_window": how.steps,
        "warmup": how.warmup,
    }


def inference(case: Case, how: How, trainee: Trainee, x: Tensor) -> dict[str, Any]:
    """Samples, latents and bounds a second; all of them are float32 whatever training is."""
    found: dict[str, Any] = {}
    if case.precision == "bfloat16":
        return found
    if how.sample_batch:
        n = how.sample_batch
        rate = n / median_seconds(case, how, lambda: trainee.sample(n))
        found |= {"sample_batch": n, "samples_per_s": rate}
    if how.samples and trainee.encode is not None and trainee.bound is not None:
        encode, bound, few = trainee.encode, trainee.bound, x[:BOUNDED]
        found["encoded_per_s"] = len(x) / median_seconds(case, how, lambda: encode(x))
        k = how.samples
        rate = len(few) * k / median_seconds(case, how, lambda: bound(few, k))
        found |= {"iw_samples": k, "iw_passes_per_s": rate}
    return found


def median_seconds(case: Case, how: How, work: Callable[[], Any]) -> float:
    """Median time of `work` after as many calls as training steps before their windows."""
    for _ in range(1 + how.warmup):
        work()
    return statistics.median(seconds(case.device, work) for _ in range(how.windows))


def seconds(device: str, work: Callable[[], Any], times: int = 1) -> float:
    """Mean time of `work`, with the device synchronised around it."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - begun) / times


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def matrix_rate(case: Case) -> float:
    """Measured matrix products in the case's precision, FLOP/s."""
    n = 8192 if case.device.startswith("cuda") else 1024
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    a = torch.rand(n, n, device=case.device, dtype=dtype)
    return 2 * n**3 / min(seconds(case.device, lambda: a @ a) for _ in range(10))


def flops_per_datum(case: Case) -> int:
    """FLOPs of the networks of a step, forward and backward, nothing computed twice.

    Convolutions count as direct ones, whatever way they go.
    """
    config = configured(case._replace(device="cpu", recompute=False))
    # Shapes are enough to count, so nothing is computed. Two data, as batch norm wants.
    with torch.device("meta"):
        model = build_model(config=config)
    with FlopCounterMode(display=False) as counter:
        x = torch.empty(2, *config.model.shape, device="meta")
        px, latents = model(x)
        elbo(px, latents, x).loss.backward()
    return int(counter.get_total_flops()) // 2
