"""When a loss is not finite: which module was the first to go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ladder.config import Config, ModelConfig
from ladder.noise import reseed
from ladder.train.device import products
from ladder.train.schemes import weights_at
from ladder.train.state import State
from ladder.train.step import forward_terms, penalised, shards


def first_offender(state: State, x: Tensor, step: int, config: Config[ModelConfig]) -> str:
    """Run a failed step again and find what was the first to be not finite.

    Args:
        state: The run, with the weights the step began with.
        x: The step's data, before binarisation.
        step: The step, so that its noise is the same.
        config: The run's configuration.

    Returns:
        A clause that names layer and module: of a weight, else of the forward pass in the order
        of execution, else of a term of the objective or a penalty, else of the first gradient in
        the order of the backward pass.
    """
    model = state.model
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {_place(name)}"
    reseed(config.train.seed, step, state.first_shard)
    with torch.compiler.set_stance("force_eager"):  # compiled layers call no hooks of their parts
        for shard in shards(state, x, step, config):
            with products(config.train.precision, x.device):
                clause = _of_shard(state, shard, step, config)
            if clause is not None:
                return clause
    return "nothing that running the step again shows"


def _of_shard(state: State, x: Tensor, step: int, config: Config[ModelConfig]) -> str | None:
    model, found = state.model, list[str]()
    with _watched(model, found):
        weights = weights_at(config.objective, state.schemes, state.multipliers, step)
        terms = forward_terms(model, x, weights, config)
    if found:
        return f"the output of {_place(found[0])}"
    for name, kl in terms.kl.items():
        if not kl.isfinite().all():
            return f"the KL of layer {name}"
    if not terms.log_px.isfinite().all():
        return "the log-likelihood, module likelihood"
    costs = {} if state.penalising is None else state.penalising(step)
    for name, cost in costs.items():
        if not cost.value.isfinite().all():
            return f"the penalty {name}"
    gradient = _first_gradient(model, penalised(terms.loss, costs))
    return None if gradient is None else f"the gradient of {_place(gradient)}"


def _first_gradient(model: nn.Module, loss: Tensor) -> str | None:
    """Name of the parameter whose gradient is the first to be not finite, from the loss back."""
    found: list[str] = []
    model.zero_grad()

    def hook(name: str) -> Any:
        def note(parameter: Tensor) -> None:
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                found.append(name)

        return note

    handles = [
        parameter.register_post_accumulate_grad_hook(hook(name))
        for name, parameter in model.named_parameters()
    ]
    loss.backward()
    for handle in handles:
        handle.remove()
    return found[0] if found else None


class _watched:  # noqa: N801 (a context manager, used like a function)
    """Note in `found` the names of modules whose output is not finite, in order of execution."""

    def __init__(self, model: nn.Module, found: list[str]) -> None:
        self.model, self.found = model, found

    def __enter__(self) -> None:
        self.handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in self.model.named_modules()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not all(t.isfinite().all() for t in _tensors(output)):
                self.found.append(name)

        return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _tensors(inner)


def _place(name: str) -> str:
    layer = re.search(r"\bz\d+\b", name)
    where = f"layer {layer[0]}, " if layer else ""
    return f"{where}module {name or 'model'}"
