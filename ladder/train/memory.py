"""When memory runs out: the same batch, in more shards."""

from __future__ import annotations

import torch

from ladder.train.state import State

# How torch, cuBLAS and cuDNN, and the allocator of the CPU say it.
WORDS = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in WORDS)


def gives_way(state: State, error: RuntimeError, n: int) -> bool:
    """Halve the shards if an error says that memory ran out.

    Several processes do not: one would wait for gradients that another has no memory for.

    Args:
        state: The run; `accumulate` and `raised` are doubled.
        error: What went wrong while gradients were computed.
        n: Data of the batch.

    Returns:
        Whether the step is to be tried again; false if the error is another one, or shards are
        of one datum already.
    """
    if not out_of_memory(error) or state.world.size > 1 or state.accumulate >= n:
        return False
    state.accumulate, state.raised = 2 * state.accumulate, 2 * state.raised
    state.optimizer.zero_grad()
    if state.statistics is not None:  # they have followed what there was room for
        state.statistics.put_back(torch.ones_like(state.omitted))
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return True
