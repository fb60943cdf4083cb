from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS = Path(__file__).parent / "results"


@pytest.fixture(scope="session")
def matrix_rate() -> float:
    """Measured float32 matrix products, FLOP/s."""
    a = torch.rand(1024, 1024)
    best = min(_seconds(lambda: a @ a) for _ in range(20))
    return 2 * 1024**3 / best


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def peak_memory_in_a_new_process(code: str) -> int:
    """Largest resident set of a Python process that runs `code`, in bytes."""
    report = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    result = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return int(result.stdout.splitlines()[-1]) * 1024


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to compare; no host name."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    gpu = {}
    if device.startswith("cuda"):
        gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return {
        **gpu,
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_result(name: str, content: dict[str, Any], device: str = "cpu") -> Path:
    """Write `results/benchmark-<name>-<device>-float32-pt<version>.json`."""
    version = torch.__version__.split("+")[0]
    path = RESULTS / f"benchmark-{name}-{device.split(':')[0]}-float32-pt{version}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(device), **content}, indent=2) + "\n")
    return path
