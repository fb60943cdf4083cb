"""What a configuration would run, without running it: sizes from the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from ladder.build import build_model
from ladder.config import Config, ModelConfig
from ladder.data import load
from ladder.errors import UserError
from ladder.execution import called_layers, set_recompute
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo
from ladder.train.penalising import check_fits

MIB = 2.0**20


def plan(config: Config[ModelConfig]) -> dict[str, Any]:
    """Count parameters, latents, memory and steps.

    Args:
        config: The whole configuration.

    Returns:
        Plain values: `parameters` by part, `latents` by name with their shapes, `memory` in MiB
        (weights, gradients, optimiser, average, and what one pass keeps for the backward pass),
        `steps`; `data` says why if the data cannot be read here.
    """
    with torch.device("meta"):
        model = build_model(config=config)
        at_once = math.ceil(config.train.batch_size / config.train.accumulate)
        x = torch.empty(at_once, *config.model.shape)
    set_recompute(model, config.train.recompute)
    check_fits(config.objective, model)
    latents, activations = _trace(model, x)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    average = weights if config.train.ema else 0
    return {
        "model": config.preset or config.model.system,
        "parameters": {
            "total": sum(p.numel() for p in model.parameters()),
            **{
                name: sum(p.numel() for p in part.parameters())
                for name, part in model.named_children()
            },
        },
        "latents": latents,
        "memory_mib": {
            "weights": weights / MIB,
            "gradients": weights / MIB,
            "optimizer": 2 * weights / MIB,
            "average": average / MIB,
            "activations": activations / MIB,
            "total": (4 * weights + average + activations) / MIB,
        },
        **_length(config),
    }


def _trace(model: HierarchicalVAE, x: Tensor) -> tuple[dict[str, list[int]], int]:
    """Latent shapes, and the bytes that autograd keeps of one batch."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    if model.top_down.recompute:  # what is computed again is not saved, but its inputs stay
        for layer in called_layers(model):
            layer.register_forward_pre_hook(lambda _, inputs: _each(keep, inputs))
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        px, latents = model(x)
        loss = elbo(px, latents, x).loss  # alive, so that no storage is counted under two names
    sizes = sum(size for storage, size in kept.items() if storage not in own)
    del loss
    return {name: list(v.z.shape[1:]) for name, v in latents.items()}, sizes


def _each(keep: Callable[[Tensor], Tensor], inputs: Any) -> None:
    for tensor in tree_leaves(inputs):
        if isinstance(tensor, Tensor):
            keep(tensor)


def _length(config: Config[ModelConfig]) -> dict[str, Any]:
    train = config.train
    result: dict[str, Any] = {"batch_size": train.batch_size, "device": train.device}
    try:
        data = load(config.data, config.model.shape, train.seed)
    except UserError as error:
        return {**result, "data": str(error).removeprefix("data: "), "steps": train.steps}
    sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    return {
        **result,
        "data": {"name": config.data.name, **sizes},
        "steps": train.total_steps(len(data.train)),
    }


def plan_text(result: dict[str, Any]) -> str:
    """The plan for a person to read."""
    memory, parameters = result["memory_mib"], result["parameters"]
    parts = ", ".join(f"{name} {n:,}" for name, n in parameters.items() if name != "total")
    latents = "\n".join(
        f"  {name:<5} {' x '.join(map(str, shape))}" for name, shape in result["latents"].items()
    )
    data, steps = result["data"], result["steps"] or "an unknown number of"
    if isinstance(data, dict):
        data = f"{data['name']}: " + ", ".join(
            f"{n:,} {k}" for k, n in data.items() if k != "name"
        )
    used = ", ".join(f"{name} {size:.1f}" for name, size in memory.items() if name != "total")
    return "\n".join(
        [
            f"model       {result['model']}",
            f"parameters  {parameters['total']:,} ({parts})",
            f"latents     top first\n{latents}",
            f"memory      about {memory['total']:.1f} MiB ({used})",
            f"data        {data}",
            f"would run   {steps} steps of {result['batch_size']} on {result['device']}",
        ]
    )
