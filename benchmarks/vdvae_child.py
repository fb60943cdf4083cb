"""One measurement of `vdvae.py`, in a process of its own: JSON in, JSON out as the last line.

Each has its own process because peak memory, compiled graphs and precision are a process's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import machine
from vdvae_models import Case, Trainee, images, ours, step_flops

from ladder.build import resolve

NO_MEMORY = 75  # exit code of a process that would have gone over its limit
GIB = 2**30


class How(NamedTuple):
    """How to measure, which no result depends on."""

    windows: int = 5
    steps: int = 5
    warmup: int = 3
    sample_batch: int = 64
    limit_gib: float | None = None
    least: int = 1
    most: int = 4096
    released: str | None = None


def make(case: Case, how: How) -> Trainee:
    """The model that the case names."""
    tf32 = case.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # which torch would allow unasked
    if case.code == "released":
        system = resolve(case.preset, case.overrides).model.system
        if system not in ("vdvae", "biva"):
            raise SystemExit(f"the released code of '{system}' is not timed; leave --released out")
        module = importlib.import_module(f"{system}_released")
        trainee: Trainee = module.released(case, Path(how.released or "."))
        return trainee
    return ours(case)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(device: str, work: Callable[[], Any], times: int = 1) -> float:
    """Mean time of `work`."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - begun) / times


def matrix_rate(case: Case) -> float:
    """Measured matrix products in the case's precision, FLOP/s."""
    n = 8192 if case.device.startswith("cuda") else 1024
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    a = torch.rand(n, n, device=case.device, dtype=dtype)
    return 2 * n**3 / min(seconds(case.device, lambda: a @ a) for _ in range(20))


def forget_peak(device: str) -> None:
    """From now on, `peak_gib` counts anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: str) -> float:
    """Most memory since `forget_peak`: the tensors' on a GPU, else the whole process's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def limit_memory(device: str, gib: float) -> None:
    """Fail, rather than take more: on a GPU by an exception, else by ending the process."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))
        return
    page = os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while int(Path("/proc/self/statm").read_text().split()[1]) * page < gib * GIB:
            time.sleep(0.01)
        os._exit(NO_MEMORY)

    threading.Thread(target=watch, daemon=True).start()


def measure(case: Case, how: How) -> dict[str, Any]:
    """Training steps, then samples."""
    if how.limit_gib is not None:
        limit_memory(case.device, how.limit_gib)
    trainee, x = make(case, how), images(case, case.batch)
    rates = [matrix_rate(case)]
    first = seconds(case.device, lambda: trainee.step(x))
    for _ in range(how.warmup):
        trainee.step(x)
    forget_peak(case.device)
    begun = time.process_time()
    times = [seconds(case.device, lambda: trainee.step(x), how.steps) for _ in range(how.windows)]
    # What a busy machine disturbs least, as long as there is one thread.
    cpu = (time.process_time() - begun) / (how.windows * how.steps)
    peak = peak_gib(case.device)
    rates.append(matrix_rate(case))
    median = statistics.median(times)
    compiled = case.mode == "compiled"
    return {
        "parameters": trainee.parameters,
        "seconds": times,
        "seconds_per_step": median,
        "cpu_seconds_per_step": cpu,
        "images_per_s": case.batch / median,
        "first_step_seconds": first,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] if compiled else None,
        "peak_memory_gib": peak,
        "matrix_rate_gflops": [rate / 1e9 for rate in rates],
        **trainee.counts(),
        **sampling(case, how, trainee),
    }


def sampling(case: Case, how: How, trainee: Trainee) -> dict[str, Any]:
    """Images/s of the prior, eager and in float32."""
    if not how.sample_batch or case.mode != "eager" or case.precision != "float32":
        return {}
    n = how.sample_batch
    trainee.sample(n)
    times = [seconds(case.device, lambda: trainee.sample(n)) for _ in range(how.windows)]
    return {"sample_batch": n, "samples_per_s": n / statistics.median(times)}


def largest(case: Case, how: How) -> dict[str, Any]:
    """The largest batch whose step fits into memory."""
    cuda = case.device.startswith("cuda")
    if cuda and how.limit_gib is not None:
        limit_memory(case.device, how.limit_gib)
    trainee = make(case, how)
    trainee.step(images(case, 1))  # from here on the optimiser's state is there

    def peak_at(batch: int) -> float | None:
        forget_peak(case.device)
        try:
            time = seconds(case.device, lambda: trainee.step(images(case, batch)))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
        peak = peak_gib(case.device)
        print(f"batch {batch}: {peak:.2f} GiB, {time:.2f} s", file=sys.stderr)
        return peak if cuda or how.limit_gib is None or peak <= how.limit_gib else None

    batch, peaks = search(peak_at, how.most, how.least)
    return {"largest_batch": batch, "most": how.most, "peak_memory_gib_at": peaks}


def search(
    peak_at: Callable[[int], float | None], most: int, least: int = 1
) -> tuple[int, dict[int, float | None]]:
    """Double, then bisect, to within a sixteenth; returns what fits, and every trial's peak."""
    peaks: dict[int, float | None] = {}
    low, high, batch = 0, most + 1, least
    while low < batch < high:
        peaks[batch] = peak_at(batch)
        low, high = (low, batch) if peaks[batch] is None else (batch, high)
        if high > most:
            batch = min(2 * low, most)
        elif high - low <= max(1, low // 16):
            break
        else:
            batch = (low + high) // 2
    return low, peaks


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says so, in the words of torch, cuBLAS and cuDNN, or the CPU's allocator."""
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def main() -> None:
    task, case, how = (json.loads(word) for word in sys.argv[1:])
    case, how = Case(**case), How(**how)
    if task == "flops":
        print(json.dumps({"flops_per_step": step_flops(case)}))
        return
    try:
        result = {"step": measure, "largest": largest}[task](case, how)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        result = {"failed": "out of memory"}
    print(json.dumps({"machine": machine(case.device), **result}))


if __name__ == "__main__":
    main()
