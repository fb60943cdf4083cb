"""Counting what a step asks of torch: operators, and words from the device to the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result Python waits for.
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.item")


class Calls(TorchDispatchMode):
    """Counts operators by name while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        """How often the host waited for a number."""
        return sum(self.count[name] for name in READS)


def calls(work: Callable[[], Any]) -> Calls:
    """What `work` asks of torch."""
    with Calls() as counted:
        work()
    return counted


def allocated() -> int:
    """Blocks of memory that the GPU's allocator has asked the driver for, so far."""
    return int(torch.cuda.memory_stats()["segment.all.allocated"])
