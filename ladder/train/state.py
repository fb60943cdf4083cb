"""Everything that changes while training, in one record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ladder.build import build_model, load_system
from ladder.config import Config, CosineDecay, ModelConfig, TrainConfig
from ladder.data import binarize
from ladder.errors import UserError
from ladder.execution import set_recompute
from ladder.model import HierarchicalVAE
from ladder.noise import seeded
from ladder.sampling import layer_names
from ladder.train.adamax import Adamax
from ladder.train.meter import Meter
from ladder.train.multipliers import Multipliers
from ladder.train.penalising import Penalising
from ladder.train.schemes import Schemes, layer_schemes, new_multipliers
from ladder.train.skipping import Skipping
from ladder.train.statistics import Statistics


@dataclass
class State:
    """A training run between two steps.

    Attributes:
        model: The model being trained.
        parameters: Its parameters; walking the module tree for them costs as much as a layer.
        optimizer: Its optimiser; it asks the host nothing.
        weights: What is averaged: the parameters, then the floating-point buffers that a
            checkpoint keeps, such as running means of batch norm.
        average: Running average of the weights, in their order; `None` without EMA.
        step: Optimiser steps done.
        failed: 0-dim float32 on the device; 1 from the step on at which training failed. Once
            set, no update changes a parameter, so they stay those that failed.
        omitted: 0-dim float32 on the device; 1 where the last step changed nothing.
        healthy: 0-dim float64 on the device; number of steps before training failed.
        skipping: Decides which steps are left out.
        meter: Sums of the metrics since they were last written.
        schemes: What the objective says about every layer.
        multipliers: Those that hold the KL of layers at their targets; `None` without targets.
        penalising: The penalties of weights; `None` without any.
        statistics: Running statistics, which a step that is left out must not change; `None` if
            none is left out.
        total: Steps of the whole training, if the learning rate asks for them.
    """

    model: HierarchicalVAE
    parameters: list[nn.Parameter]
    weights: list[Tensor]
    optimizer: torch.optim.Adam | Adamax
    average: list[Tensor] | None
    step: int
    failed: Tensor
    omitted: Tensor
    healthy: Tensor
    skipping: Skipping
    meter: Meter
    schemes: Schemes
    multipliers: Multipliers | None
    penalising: Penalising | None
    statistics: Statistics | None
    total: int | None


def new_state(
    config: Config[ModelConfig],
    device: torch.device,
    first: Tensor | None = None,
    total: int | None = None,
) -> State:
    """Build the model and its optimiser, seeded by the configuration.

    Args:
        config: The run's configuration.
        device: Where to train.
        first: Data for data-dependent initialisation, `[B, *shape]` in [0, 1] on the device, if
            the model's system has a function `initialise`; `None` for weights that a checkpoint
            will replace.
        total: Steps of the whole training; `None` takes `train.steps`, if that is said.

    Returns:
        The state before the first step.

    Raises:
        UserError: If the objective does not fit the model, or a cosine decay of the learning rate
            does not know where it ends.
    """
    with seeded(config.train.seed):
        model = build_model(config=config).to(device)
        _arrange(model, config, device)
        if first is not None:
            _initialise(model, binarize(first) if config.data.binarize == "dynamic" else first)
        penalties = config.objective.penalties
        penalising = Penalising(config.objective, model) if penalties is not None else None
    total = total or config.train.steps
    if isinstance(config.train.lr_decay, CosineDecay) and total is None:
        raise UserError("train.lr_decay: new_state needs 'total', the steps of the whole training")
    schemes = layer_schemes(config.objective, layer_names(model))
    multipliers = new_multipliers(config.objective, schemes, device)
    parameters = list(model.parameters())
    weights = [*parameters, *_kept_buffers(model)]
    average = [w.detach().clone() for w in weights] if config.train.ema else None
    omitted, skipping = torch.zeros((), device=device), Skipping(config.train, device)
    optimizer = _optimizer(parameters, config.train)
    # The fused kernels leave everything as it is while this is 1, without asking the host.
    optimizer.found_inf = omitted  # type: ignore[union-attr]
    return State(
        model=model,
        parameters=parameters,
        weights=weights,
        optimizer=optimizer,
        average=average,
        step=0,
        failed=torch.zeros_like(omitted),
        omitted=omitted,
        healthy=torch.zeros((), device=device, dtype=torch.float64),
        skipping=skipping,
        meter=Meter(device),
        schemes=schemes,
        multipliers=multipliers,
        penalising=penalising,
        statistics=Statistics(model) if skipping.on else None,
        total=total,
    )


def _arrange(model: HierarchicalVAE, config: Config[ModelConfig], device: torch.device) -> None:
    """How the model lies in memory, and what it keeps there for the backward pass."""
    set_recompute(model, config.train.recompute)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=memory_format(config, device))


def memory_format(config: Config[ModelConfig], device: torch.device) -> torch.memory_format:
    """Order in which batches, and weights of convolutions, lie in memory."""
    wish = config.train.channels_last
    if wish is None:
        wish = device.type == "cuda" and config.train.precision == "bfloat16"
    images = len(config.model.shape) == 3
    return torch.channels_last if wish and images else torch.preserve_format


def _kept_buffers(model: HierarchicalVAE) -> list[Tensor]:
    kept = model.state_dict().keys()
    return [b for name, b in model.named_buffers() if name in kept and b.is_floating_point()]


def _initialise(model: HierarchicalVAE, x: Tensor) -> None:
    """Let the system see its first data, if it wants to: `initialise(model, x)` in its module."""
    hook = getattr(load_system(model.config.system), "initialise", None)
    if hook is not None:
        hook(model, x)


def _optimizer(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Adam | Adamax:
    betas = train.betas[0], train.betas[1]
    if train.optimizer == "adamax":
        options = train.eps, train.weight_decay, train.bias_correction
        return Adamax(parameters, train.lr, betas, *options)
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=train.lr,
        betas=betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        fused=True,
    )


def choose_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` into a device that is there.

    Args:
        name: What the configuration says.

    Returns:
        The device.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device: no device '{name}'; try auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device: '{name}' is not there; try auto or cpu")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # noise is seeded on the current device
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device: '{name}' is not supported; try auto, cpu or cuda")
    return device
