"""Peak memory of a process, and a limit of it that ends the process instead of the machine."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from pathlib import Path

import torch

NO_MEMORY = 75  # exit code of a process that would have gone over its limit
GIB = 2**30


def forget_peak(device: str) -> None:
    """From now on, `peak_gib` counts anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: str, graph: bool = False) -> float:
    """Most memory since `forget_peak`.

    Args:
        device: What the memory is of.
        graph: Whether a CUDA graph is replayed, whose activations lie in a pool of its own.

    Returns:
        On a GPU the tensors' memory, of a graph all that torch has reserved, as the tensors inside
        of it are not allocated again; else the whole process's.
    """
    if device.startswith("cuda"):
        cuda = torch.cuda
        return (cuda.max_memory_reserved() if graph else cuda.max_memory_allocated()) / GIB
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    # Where the system says it, because the other number begins with that of the parent process.
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def limit_memory(device: str, gib: float) -> None:
    """Fail, rather than take more: on a GPU by an exception, else by ending the process.

    Args:
        device: What the memory is of.
        gib: The most that the process may take.
    """
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
