"""A combination to measure, in words; as JSON it names a row of the results."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ladder.build import resolve
from ladder.config import Config, ModelConfig
from ladder.errors import UserError
from ladder.train.device import choose_device

PRECISIONS = ("float32", "tf32", "bfloat16")
MODES = ("eager", "compiled", "graph")


class Case(NamedTuple):
    """What runs, and how.

    Attributes:
        preset: Name of a preset, or path of a YAML file.
        overrides: Words `key=value`.
        batch: Data in a training step.
        device: Such as `cpu` or `cuda`.
        precision: Of the networks: `float32`, `tf32` or `bfloat16`.
        mode: `eager`; `compiled`, every layer and encoder block by itself; or `graph`, the whole
            step as one CUDA graph.
        recompute: Whether layers are computed again for the backward pass.
        channels_last: Order of images in memory; `None` takes the library's rule.
        backend: Of what is compiled; `aot_eager` counts graphs, but writes no code.
    """

    preset: str
    overrides: list[str]
    batch: int
    device: str = "cpu"
    precision: str = "float32"
    mode: str = "eager"
    recompute: bool = False
    channels_last: bool | None = None
    backend: str = "inductor"


def checked(case: Case) -> Case:
    """The case, if it can run on this machine.

    Args:
        case: The case.

    Returns:
        The same case, with the device that `auto` is here.

    Raises:
        UserError: If a word is wrong, the device is not there, or what is wanted is only a GPU's.
    """
    if case.batch < 1:
        raise UserError(f"bench: --batch: {case.batch} should be at least 1")
    try:
        device = choose_device(case.device)
    except UserError as error:
        raise UserError(str(error).replace("train.device", "bench: --device")) from None
    if case.precision == "tf32" and device.type != "cuda":
        raise UserError("bench: --precision: tf32 is a GPU's; on a CPU take float32 or bfloat16")
    if case.mode == "graph" and device.type != "cuda":
        raise UserError("bench: --mode: graph is a GPU's; on a CPU take eager or compiled")
    case = case._replace(device=device.type if case.device == "auto" else case.device)
    configured(case)
    return case


def configured(case: Case) -> Config[ModelConfig]:
    """The preset with what the case says."""
    words = {
        "device": case.device,
        "batch_size": str(case.batch),
        "precision": case.precision,
        "recompute": str(case.recompute).lower(),
        "compile": "none",  # `trainee` compiles, with the case's backend
        "cuda_graph": str(case.mode == "graph").lower(),
    }
    if case.channels_last is not None:
        words["channels_last"] = str(case.channels_last).lower()
    return resolve(case.preset, [*case.overrides, *(f"train.{k}={v}" for k, v in words.items())])


def images(case: Case, n: int) -> Tensor:
    """Random bytes as grey values in [0, 1], `[n, *shape]`, on the case's device."""
    shape = resolve(case.preset, case.overrides).model.shape
    return torch.randint(0, 256, (n, *shape), device=case.device).float() / 255
