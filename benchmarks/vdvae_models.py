"""What `vdvae.py` measures: a combination in words, and a model that is ready to train by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ladder.build import build_model, resolve
from ladder.config import Config, ModelConfig
from ladder.execution import compile_layers
from ladder.objectives import elbo
from ladder.sampling import sample
from ladder.train.state import choose_device, new_state
from ladder.train.step import train_step


class Case(NamedTuple):
    """A combination; as JSON it names a row of the results."""

    preset: str
    overrides: list[str]
    batch: int
    device: str = "cpu"
    precision: str = "float32"  # or tf32, or bfloat16
    mode: str = "eager"  # or compiled: every layer and encoder block by itself
    recompute: bool = False
    channels_last: bool | None = None  # None takes the library's rule
    code: str = "ladder"  # or released
    backend: str = "inductor"  # of what is compiled


class Trainee(NamedTuple):
    """A model, and what can be done with it."""

    parameters: int
    step: Callable[[Tensor], None]  # one training step on `[B, *shape]` in [0, 1]
    sample: Callable[[int], Any]  # so many images, on the host as uint8
    counts: Callable[[], dict[str, int]]  # of steps, and of those that did not change the weights


def configured(case: Case) -> Config[ModelConfig]:
    """The preset with what the case says."""
    words = {
        "device": case.device,
        "batch_size": case.batch,
        "precision": "bfloat16" if case.precision == "bfloat16" else "float32",
        "recompute": str(case.recompute).lower(),
    }
    if case.channels_last is not None:
        words["channels_last"] = str(case.channels_last).lower()
    return resolve(case.preset, [*case.overrides, *(f"train.{k}={v}" for k, v in words.items())])


def ours(case: Case) -> Trainee:
    """The library's own step and sampling."""
    config = configured(case)
    total = config.train.steps or 1_000_000  # for rates that decay; far more than are timed
    state = new_state(config, choose_device(case.device), total=total)
    if case.mode == "compiled":
        compile_layers(state.model, case.backend)

    def counts() -> dict[str, int]:
        left_out = int(state.skipping.skipped)
        return {"steps": state.step, "left_out": left_out, "training_failed": bool(state.failed)}

    return Trainee(
        parameters=sum(p.numel() for p in state.parameters),
        step=lambda x: train_step(state, x, config),
        sample=lambda n: sample(state.model, n).sample().mul(255).byte().cpu(),
        counts=counts,
    )


def images(case: Case, n: int) -> Tensor:
    """Random bytes as grey values in [0, 1], `[n, *shape]`."""
    shape = resolve(case.preset, case.overrides).model.shape
    return torch.randint(0, 256, (n, *shape), device=case.device).float() / 255


def step_flops(case: Case) -> int:
    """FLOPs of the networks of a step, forward and backward, nothing computed twice."""
    config = configured(case._replace(device="cpu", recompute=False))
    # Shapes are enough to count, so nothing is computed, and one datum is like any other.
    with torch.device("meta"):
        model = build_model(config=config)
    with FlopCounterMode(display=False) as counter:
        x = torch.empty(1, *config.model.shape, device="meta")
        elbo(*model(x), x).loss.backward()
    return case.batch * counter.get_total_flops()
