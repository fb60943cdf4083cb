"""The pass of data-dependent initialisation: modules set by their own outputs, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# (module, its inputs, its output) -> the output that the modules after it see.
Setter = Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]


@torch.no_grad()
def first_pass(model: nn.Module, x: Tensor, modules: Iterable[nn.Module], setter: Setter) -> None:
    """Run a model once in training mode; each module is set before the next one sees its output.

    Args:
        model: A new model; its mode stays what it is.
        x: Data, `[B, *shape]`.
        modules: Those that are set, each of them called once in a pass.
        setter: Changes a module and returns its new output.
    """
    handles = [module.register_forward_hook(setter) for module in modules]
    training = model.training
    try:
        model.train()(x)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
