"""A model that is ready for what is measured, in the mode and precision that a case names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder.bench.case import Case, configured, images
from ladder.config import Config, ModelConfig
from ladder.diagnostics import as_evaluated
from ladder.execution import compile_layers
from ladder.objectives import iw_elbo
from ladder.sampler import Sampler
from ladder.sampling import encode, sample
from ladder.train.device import allow_tf32, choose_device
from ladder.train.feed import Setup
from ladder.train.replayed import Replayed
from ladder.train.state import new_state
from ladder.train.step import train_step


class Trainee(NamedTuple):
    """A model, and what can be done with it.

    Attributes:
        parameters: How many it has.
        step: One training step on data `[B, *shape]` in [0, 1].
        counts: Of steps, and of those that did not change the weights.
        sample: So many data from the prior, on the host as uint8.
        encode: Every latent of data `[B, *shape]`; `None` if that is not measured.
        bound: The importance-weighted bound of data with K samples; `None` the same.
    """

    parameters: int
    step: Callable[[Tensor], None]
    counts: Callable[[], dict[str, int]]
    sample: Callable[[int], Any]
    encode: Callable[[Tensor], Any] | None = None
    bound: Callable[[Tensor, int], Any] | None = None


def trainee(case: Case) -> Trainee:
    """The library's own step, sampling, encoding and bound.

    Args:
        case: The case.

    Returns:
        The model before its first step.
    """
    set_products(case)
    config = configured(case)
    total = config.train.steps or 1_000_000  # for rates that decay; far more than are timed
    state = new_state(config, choose_device(case.device), total=total)
    if case.mode == "compiled":
        compile_layers(state.model, case.backend)
    replayed = Replayed(_setup(case, config), state) if case.mode == "graph" else None

    def step(x: Tensor) -> None:
        if replayed is None:
            train_step(state, x, config)
        else:
            replayed()  # on data of its own, which lie where the graph gathers them
        if state.accumulate > config.train.accumulate:  # training would go on; this is no step
            state.accumulate = config.train.accumulate
            raise torch.OutOfMemoryError("out of memory: a batch was taken in parts")

    def counts() -> dict[str, int]:
        left_out = int(state.skipping.skipped)
        return {"steps": state.step, "left_out": left_out, "training_failed": bool(state.failed)}

    sampler = cache(lambda n: Sampler(state.model, n))

    @torch.no_grad()
    def drawn(n: int) -> Tensor:
        with as_evaluated(state.model, None):
            px = sample(state.model, n) if replayed is None else sampler(n)()[0]
            return px.sample().mul(255).byte().cpu()

    def encoded(x: Tensor) -> Any:
        with as_evaluated(state.model, None):
            return encode(state.model, x)

    @torch.no_grad()
    def bound(x: Tensor, samples: int) -> Tensor:
        with as_evaluated(state.model, None):
            return iw_elbo(state.model, x, samples)

    return Trainee(
        parameters=sum(p.numel() for p in state.parameters),
        step=step,
        counts=counts,
        sample=drawn,
        encode=encoded,
        bound=bound,
    )


def _setup(case: Case, config: Config[ModelConfig]) -> Setup:
    """Random data of one batch as a training set."""
    data, device = images(case, case.batch), choose_device(case.device)
    return Setup(config, Path(), data, data, "test", device, total=1)


def set_products(case: Case) -> None:
    """Let a GPU round what it multiplies to TF32, or forbid it, for the whole process.

    Args:
        case: The case.
    """
    allow_tf32(case.precision == "tf32")  # which torch would allow unasked for convolutions
