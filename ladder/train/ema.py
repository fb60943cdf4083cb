"""The exponential moving average of the weights: parameters and running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ladder.train.state import State


@torch.no_grad()
def update(state: State, decay: float) -> None:
    """average = decay * average + (1 - decay) * weights, unless the step was left out."""
    if state.average is not None:
        weight = (1.0 - decay) * (1.0 - state.omitted)
        # Not a lerp, which would ask the host for the weight's value.
        change = torch._foreach_sub(state.weights, state.average)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(state.average, change)


@contextmanager
def averaged(state: State) -> Iterator[None]:
    """Put the averaged weights, if there are any, into the model inside the block."""
    if state.average is None:
        yield
        return
    _exchange(state.weights, state.average)
    try:
        yield
    finally:
        _exchange(state.weights, state.average)


@torch.no_grad()
def _exchange(weights: list[Tensor], average: list[Tensor]) -> None:
    for weight, mean in zip(weights, average, strict=True):
        weight.data, mean.data = mean.data, weight.data
