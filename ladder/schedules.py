"""Annealing schedules: pure functions of the step.

Each returns a 0-dim float64 tensor, so that a compiled step takes it as data and resuming needs
nothing but the step. `step` counts optimiser steps from 0 and may be an `int` or a 0-dim tensor;
a tensor keeps the arithmetic on its device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = int | Tensor


def constant(step: Step, value: float = 1.0) -> Tensor:
    """The same value at every step."""
    return torch.full_like(_float64(step), value)


def linear(
    step: Step,
    steps: int,
    start: float = 0.0,
    end: float = 1.0,
    delay: float = 0.0,
    least: float = 0.0,
) -> Tensor:
    """Straight line from `start` at step `delay` to `end` so many `steps` later, flat around it.

    Args:
        step: Optimiser step.
        steps: Steps of the line.
        start: Value before it, and where it begins.
        end: Value after it.
        delay: Steps before it.
        least: What the value never is below.

    Returns:
        The value at `step`, 0-dim.
    """
    progress = ((_float64(step) - delay) / steps).clamp(0.0, 1.0)
    return (start + (end - start) * progress).clamp(min=least)


def cosine(step: Step, steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    """Half a cosine from `start` at step 0 to `end` at `steps`, then flat."""
    progress = (_float64(step) / steps).clamp(max=1.0)
    return start + (end - start) * 0.5 * (1.0 - torch.cos(torch.pi * progress))


def cyclic(
    step: Step,
    period: int,
    ramp: float = 0.5,
    cycles: int | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> Tensor:
    """Linear ramps that begin again every `period` steps (Fu et al. 2019, eq. 6).

    Args:
        step: Optimiser step.
        period: Steps in one cycle.
        ramp: Share of a cycle spent rising; the rest of it stays at `end`.
        cycles: After so many cycles the value stays at `end`; `None` goes on for ever.
        start: Value at the beginning of a cycle.
        end: Value at the top.

    Returns:
        The value at `step`, 0-dim.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al.,
        2019), https://arxiv.org/abs/1903.10145
    """
    at = _float64(step) / period
    progress = ((at - at.floor()) / ramp).clamp(max=1.0)
    value = start + (end - start) * progress
    return value if cycles is None else torch.where(at >= cycles, end, value)


def _float64(step: Step) -> Tensor:
    return torch.as_tensor(step, dtype=torch.float64)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cyclic": cyclic,
}
