"""The largest batch whose training step fits into memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ladder.bench.case import Case, images
from ladder.bench.measure import How, Make, seconds
from ladder.bench.memory import forget_peak, limit_memory, peak_gib
from ladder.train.memory import out_of_memory


def largest(case: Case, how: How, make: Make) -> dict[str, Any]:
    """Try batches until one does not fit.

    Args:
        case: What to measure; its batch does not matter.
        how: How.
        make: Makes the model that the case names.

    Returns:
        The batch, the most that was allowed, and the peak of every trial.
    """
    cuda = case.device.startswith("cuda")
    if cuda and how.limit_gib is not None:
        limit_memory(case.device, how.limit_gib)
    trainee = make(case)
    trainee.step(images(case, 1))  # from here on the optimiser's state is there

    def peak_at(batch: int) -> float | None:
        forget_peak(case.device)
        try:
            time = seconds(case.device, lambda: trainee.step(images(case, batch)))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
        peak = peak_gib(case.device, case.mode == "graph")
        print(f"batch {batch}: {peak:.2f} GiB, {time:.2f} s", file=sys.stderr)
        return peak if cuda or how.limit_gib is None or peak <= how.limit_gib else None

    batch, peaks = search(peak_at, how.most, how.least)
    return {"largest_batch": batch, "most": how.most, "peak_memory_gib_at": peaks}


def search(
    peak_at: Callable[[int], float | None], most: int, least: int = 1
) -> tuple[int, dict[int, float | None]]:
    """Double, then bisect, to within a sixteenth.

    Args:
        peak_at: Peak memory of a batch, or `None` if it does not fit.
        most: Largest batch that is tried.
        least: Batch that is tried first.

    Returns:
        What fits, and every trial's peak.
    """
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
