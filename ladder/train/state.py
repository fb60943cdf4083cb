"""Everything that changes while training, in one record."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._triton import has_triton

from ladder.build import build_model, load_system
from ladder.config import Config, CosineDecay, ModelConfig, TrainConfig
from ladder.data import binarize
from ladder.errors import UserError
from ladder.execution import compile_layers, set_recompute
from ladder.model import HierarchicalVAE
from ladder.noise import seeded
from ladder.sampling import layer_names
from ladder.train.adamax import Adamax
from ladder.train.device import choose_device as choose_device
from ladder.train.device import memory_format
from ladder.train.meter import Meter
from ladder.train.multipliers import Multipliers
from ladder.train.penalising import Penalising
from ladder.train.schemes import Schemes, layer_schemes, new_multipliers
from ladder.train.skipping import Skipping
from ladder.train.statistics import Statistics, has_statistics
from ladder.train.world import World

SMALL = 5_000_000  # parameters
LONG = 2_000  # steps
# torch 2.14 has another word for it.
_WORDS = signature(DistributedDataParallel).parameters
NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _WORDS else "broadcast_buffers": False
}


@dataclass
class State:
    """A training run between two steps.

    Attributes:
        model: The model being trained.
        network: What is called to train it: the model, or what keeps its gradients the same in
            all processes.
        parameters: Its parameters; walking the module tree for them costs as much as a layer.
        optimizer: Its optimiser; it asks the host nothing.
        weights: What is averaged: the parameters, then the floating-point buffers that a
            checkpoint keeps, such as running means of batch norm.
        average: Running average of the weights, in their order; `None` without EMA.
        step: Optimiser steps done.
        clock: `step` on the device, 0-dim float64, for schedules.
        rate: The learning rate on a GPU, 0-dim, so that it is data there; `None` on the CPU.
        failed: 0-dim float32 on the device; 1 from the step on at which training failed. Once
            set, no update changes a parameter, so they stay those that failed.
        omitted: 0-dim float32 on the device; 1 where the last step changed nothing.
        healthy: 0-dim float64 on the device; number of steps before training failed.
        skipping: Decides which steps are left out.
        meter: Sums of the metrics since they were last written.
        schemes: What the objective says about every layer.
        multipliers: Those that hold the KL of layers at their targets; `None` without targets.
        penalising: The penalties of weights; `None` without any.
        statistics: Running statistics, which a step that is left out, or begun again, must not
            change; `None` if there are none.
        total: Steps of the whole training, if the learning rate asks for them.
        world: The processes that train together.
        accumulate: Shards that a process takes its part of a batch in.
        raised: How many times as many they are as the configuration says, because memory ran out.
    """

    model: HierarchicalVAE
    network: nn.Module
    parameters: list[nn.Parameter]
    weights: list[Tensor]
    optimizer: torch.optim.Adam | Adamax
    average: list[Tensor] | None
    step: int
    clock: Tensor
    rate: Tensor | None
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
    world: World = field(default_factory=World)
    accumulate: int = 1
    raised: int = 1

    @property
    def first_shard(self) -> int:
        """Number of this process's first shard of a batch, which its noise is a function of."""
        return self.world.rank * self.accumulate

    def synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Where gradients are computed: only the last shard's backward pass exchanges them."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()


def new_state(
    config: Config[ModelConfig],
    device: torch.device,
    first: Tensor | None = None,
    total: int | None = None,
    world: World = World(),  # noqa: B008
) -> State:
    """Build the model and its optimiser, seeded by the configuration.

    Args:
        config: The run's configuration.
        device: Where to train.
        first: Data for data-dependent initialisation, `[B, *shape]` in [0, 1] on the device, if
            the model's system has a function `initialise`; `None` for weights that a checkpoint
            will replace.
        total: Steps of the whole training; `None` takes `train.steps`, if that is said.
        world: The processes that train together; more than one have joined.

    Returns:
        The state before the first step.

    Raises:
        UserError: If the objective does not fit the model, the precision not the device, or a
            cosine decay of the learning rate does not know where it ends.
    """
    total = total or config.train.steps
    _check(config, device, world)
    with seeded(config.train.seed):
        model = _new_model(config, device, first, total)
        penalties = config.objective.penalties
        penalising = Penalising(config.objective, model) if penalties is not None else None
    if isinstance(config.train.lr_decay, CosineDecay) and total is None:
        raise UserError("train.lr_decay: new_state needs 'total', the steps of the whole training")
    schemes = layer_schemes(config.objective, layer_names(model))
    multipliers = new_multipliers(config.objective, schemes, device)
    parameters = list(model.parameters())
    weights = [*parameters, *_kept_buffers(model)]
    average = [w.detach().clone() for w in weights] if config.train.ema else None
    omitted, skipping = torch.zeros((), device=device), Skipping(config.train, device)
    optimizer = _optimizer(parameters, config.train)
    rate = _on_device(optimizer, device)
    # The fused kernels leave everything as it is while this is 1, without asking the host.
    optimizer.found_inf = omitted  # type: ignore[union-attr]
    return State(
        model=model,
        network=_network(model, config, world),
        parameters=parameters,
        weights=weights,
        optimizer=optimizer,
        average=average,
        step=0,
        clock=torch.zeros((), device=device, dtype=torch.float64),
        rate=rate,
        failed=torch.zeros_like(omitted),
        omitted=omitted,
        healthy=torch.zeros((), device=device, dtype=torch.float64),
        skipping=skipping,
        meter=Meter(device),
        schemes=schemes,
        multipliers=multipliers,
        penalising=penalising,
        statistics=Statistics(model) if has_statistics(model) else None,
        total=total,
        world=world,
        accumulate=config.train.accumulate,
    )


def _new_model(
    config: Config[ModelConfig], device: torch.device, first: Tensor | None, total: int | None
) -> HierarchicalVAE:
    """The model, arranged, initialised and compiled; arguments as of `new_state`."""
    model = build_model(config=config).to(device)
    _arrange(model, config, device)
    if first is not None:
        _initialise(model, binarize(first) if config.data.binarize == "dynamic" else first)
    if _compiles(model, config, device, total):
        # Asked for, a break is an error; unasked, a system of the user's own may have some.
        compile_layers(model, fullgraph=config.train.compile == "layers")
    return model


def _check(config: Config[ModelConfig], device: torch.device, world: World) -> None:
    """Raise UserError for settings of training that exclude each other, or the device."""
    train = config.train
    if train.precision == "tf32" and device.type == "cpu":
        raise UserError("train.precision: tf32 is a GPU's; for the CPU give float32 or bfloat16")
    if train.compile == "model" and (world.size > 1 or train.accumulate > 1 or train.recompute):
        raise UserError(
            "train.compile: model is for one process that takes a batch as a whole, without "
            "train.accumulate and train.recompute; give layers"
        )


def _network(model: HierarchicalVAE, config: Config[ModelConfig], world: World) -> nn.Module:
    """What is called to train the model."""
    if world.size == 1:
        return model
    # Every parameter that learns gets a gradient at every step, and what is no parameter follows
    # from them and the whole batch; so nothing has to be looked for, and nothing sent about.
    # torch's static graphs cannot begin with a backward pass that sends nothing.
    static = config.train.accumulate == 1
    return DistributedDataParallel(
        model, **NO_BUFFERS, gradient_as_bucket_view=True, static_graph=static
    )


def _on_device(optimizer: torch.optim.Adam | Adamax, device: torch.device) -> Tensor | None:
    """Let a GPU read the learning rate from its own memory, as data of a graph of its work."""
    if device.type == "cpu":
        return None
    group = optimizer.param_groups[0]
    group["capturable"] = True
    group["lr"] = torch.tensor(group["lr"], device=device)
    rate: Tensor = group["lr"]
    return rate


def _arrange(model: HierarchicalVAE, config: Config[ModelConfig], device: torch.device) -> None:
    """How the model lies in memory, and what it keeps there for the backward pass."""
    set_recompute(model, config.train.recompute)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=memory_format(config, device))


def is_small(model: nn.Module) -> bool:
    """Whether a step on a GPU is many short kernels, which take longer to launch than to run."""
    return sum(p.numel() for p in model.parameters()) <= SMALL


def _compiles(
    model: nn.Module, config: Config[ModelConfig], device: torch.device, total: int | None
) -> bool:
    """Whether layers are compiled: if said, or where it pays.

    On a GPU, for a training that is longer than compiling; a small model is captured instead. The
    CPU spends its time in products, which compiling leaves as they are.
    """
    wish = config.train.compile
    long = (total or 0) >= LONG and not is_small(model)
    pays = device.type == "cuda" and long and has_triton()
    return pays if wish == "auto" else wish == "layers"


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
