"""How the layers of a pass are executed: computed twice to save memory, or compiled one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# Kinds of layers that a model may have, times batch sizes, training or not, gradients or not.
GRAPHS = 1024


class Caller(nn.Module):
    """A module that calls layers one after another, and can have them computed twice.

    How a pass is executed, not what it computes: no system depends on it.

    Attributes:
        recompute: Whether only the inputs of a layer are kept for the backward pass. Noise is
            drawn the same again, so gradients are the same.
    """

    recompute = False

    def call(self, layer: nn.Module, *inputs: Any) -> Any:
        """Return `layer(*inputs)`."""
        if not (self.recompute and torch.is_grad_enabled()):
            return layer(*inputs)
        norms = [m for m in layer.modules() if isinstance(m, _BatchNorm)]
        # Given only where needed: torch.compile follows a checkpoint without contexts.
        contexts: dict[str, Any] = {"context_fn": partial(_contexts, norms)} if norms else {}
        return checkpoint(layer, *inputs, use_reentrant=False, **contexts)


def set_recompute(model: nn.Module, on: bool = True) -> None:
    """Choose whether a model keeps only the inputs of its layers for the backward pass.

    Args:
        model: A model; changed in place.
        on: Whether layers are computed again.
    """
    for module in model.modules():
        if isinstance(module, Caller):
            module.recompute = on


def called_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a model's passes call one after another, up and down."""
    callers = [module for module in model.modules() if isinstance(module, Caller)]
    lists = [part for caller in callers for part in caller.children()]
    found = [part for part in lists if isinstance(part, nn.ModuleDict | nn.ModuleList)]
    return [layer for layers in found for layer in layers.children()]


def compile_layers(
    model: nn.Module, backend: str | Callable[..., Any] = "inductor", fullgraph: bool = True
) -> None:
    """Compile every layer by itself; layers that are alike share a graph, whatever the depth.

    Args:
        model: A model; changed in place. Its weights and their names stay what they are.
        backend: Of `torch.compile`.
        fullgraph: Whether a layer that is no single graph is an error, or several graphs.
    """
    # All layers share one line of code; each resolution and kind of them needs a graph of it,
    # more than the 8 after which dynamo would give up.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        settings = torch._dynamo.config
        setattr(settings, limit, max(getattr(settings, limit), GRAPHS))
    # Noise is that of uncompiled layers, and so a seed means what it means there.
    options = {"fallback_random": True} if backend == "inductor" else None
    for layer in called_layers(model):
        layer.compile(backend=backend, fullgraph=fullgraph, dynamic=False, options=options)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _uncounted(norms)


@contextmanager
def _uncounted(norms: list[_BatchNorm]) -> Iterator[None]:
    """Running statistics have seen the batch already: let copies see it again."""
    before = [dict(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            for name, buffer in norm._buffers.items():
                norm._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers.update(buffers)
