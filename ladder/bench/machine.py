"""What a reader needs in order to compare two machines; no host name."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the processor, the GPU if the device is one, and the versions.

    Args:
        device: What was measured, such as `cpu` or `cuda`.

    Returns:
        Plain values by name.
    """
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    gpu: dict[str, Any] = {}
    if device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        gpu = {"gpu": torch.cuda.get_device_name(device), "gpu_memory_gib": round(memory, 1)}
        gpu |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        **gpu,
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
