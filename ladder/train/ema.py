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
        # The stub knows numbers only; a tensor keeps the host out of it.
        torch._foreach_lerp_(state.average, state.weights, weight)  # type: ignore[call-overload]


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
