"""Work that is captured once as a graph of GPU kernels, and launched as a whole from then on.

A small model's step is hundreds of kernels of a few microseconds each, and Python needs longer to
launch one than the GPU to run it. A captured graph is one launch. What may be captured:

* the same kernels on the same addresses each time: shapes do not change, inputs are written into
  tensors that stay (`copy_`), and no Python that matters depends on a tensor's value;
* nothing that waits for the GPU: no `.item()`, no `bool(tensor)`, no copy from or to the host, no
  `nonzero`, no tensor made from a Python number on the host and then moved;
* noise from the default generator of the GPU: it may be seeded before any call, and then draws
  what it would have drawn without a graph;
* gradients are `None` when the work begins (`zero_grad(set_to_none=True)` inside it), or stay
  where they are and are zeroed; an optimiser is `capturable`, its learning rate a tensor;
* Python runs in the warm-up and at the capture only, so counters and schedules kept in Python
  stand still afterwards: keep them in tensors, or outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
WARM_UPS = 3  # calls before the capture: handles and workspaces are made, kernels chosen


class Replay(Generic[T]):
    """A piece of work; every call does it once, on a GPU soon as one launch.

    The first calls run the work as it is, beside the current stream, as CUDA graphs demand. The
    next one captures it, which computes nothing, and replays it. So no call is wasted, and work
    that changes what it acts on, such as a training step, is done exactly once per call.

    On the CPU every call just runs the work.

    Args:
        work: What is done, without arguments; see the rules above. It returns a tensor or
            anything else that holds tensors.
        device: Where its tensors are.
        warm_ups: Calls that run it as it is before it is captured; DDP needs 11.

    Attributes:
        graph: The captured graph; `None` before the capture, and on the CPU.
    """

    def __init__(
        self, work: Callable[[], T], device: torch.device | str, warm_ups: int = WARM_UPS
    ) -> None:
        self.work = work
        self.device = torch.device(device)
        self.warm_ups = warm_ups
        self.graph: torch.cuda.CUDAGraph | None = None
        self._stream: torch.cuda.Stream | None = None
        self._result: T

    def __call__(self) -> T:
        """Do the work.

        Returns:
            What it returned. Once captured these are the same tensors each time, overwritten by
            the next call: clone what should last.
        """
        if self.device.type != "cuda":
            return self.work()
        with torch.cuda.device(self.device):
            if self.warm_ups > 0:
                self.warm_ups -= 1
                return self.beside(self.work)
            if self.graph is None:
                self.graph = self._captured()
            self.graph.replay()
            return self._result

    def beside(self, work: Callable[[], T]) -> T:
        """Run something on the stream that the work is captured on, as warm-ups must be.

        Args:
            work: What is run once.

        Returns:
            What it returned.
        """
        if self.device.type != "cuda":
            return work()
        stream, current = self._side(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = work()
        current.wait_stream(stream)
        return result

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that brings batches, may go on meanwhile.
        with torch.cuda.graph(graph, stream=self._side(), capture_error_mode="thread_local"):
            self._result = self.work()
        return graph

    def _side(self) -> torch.cuda.Stream:
        # One for all: nodes that accumulate gradients remember the stream they were made on.
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream
