"""Data-dependent initialisation, once."""

from __future__ import annotations

import torch
from torch import Tensor

from ladder.errors import UserError
from ladder.first_pass import first_pass
from ladder.model import HierarchicalVAE
from ladder.systems.biva.normed import ConvUp, Normed

STD = 0.01
FLOORS = {"unbiased": 1e-8, "biased": 1e-10}  # added to a variance


@torch.no_grad()
def initialise(model: HierarchicalVAE, x: Tensor) -> None:
    """Give every layer's outputs for some data mean 0 and standard deviation 0.01, once.

    In one forward pass in training mode the norm and the bias of each layer are set by its own
    outputs, channel by channel, before the next one sees them. That they were is saved with them,
    and layers that say so stay as they are; those of a model that was trained without this do not
    say so, and would be set. Call it before weights are averaged, compiled or shared between
    processes: the released code averages weights that are not set yet, and sets the average anew.
    Noise comes from torch's generator.

    Args:
        model: A new model; changed in place.
        x: Data as training sees them, `[B, C, H, W]`.

    Raises:
        UserError: If there is only one datum, which has no spread, or x is not finite.

    References:
        Weight Normalization (Salimans & Kingma, 2016), section 3, https://arxiv.org/abs/1602.07868
    """
    layers = [m for m in model.modules() if isinstance(m, Normed) and not m.initialised]
    if not layers:
        return
    if len(x) < 2:
        raise UserError(
            "initialise: needs at least 2 data, not 1; give more, or train.batch_size more than 1"
        )
    if not x.isfinite().all():
        raise UserError("initialise: x holds NaN or infinite values; give data in [0, 1]")
    kind = model.config.initial_variance

    def standardise(layer: Normed, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(layer, ConvUp):  # as published: before what is around it is cut off
            output = layer.whole(*inputs)
        axes = [axis for axis in range(output.ndim) if axis != 1]
        variance, mean = torch.var_mean(output, dim=axes, correction=int(kind == "unbiased"))
        scale = STD / (variance + FLOORS[kind]).sqrt()
        layer.g.mul_(scale.view_as(layer.g))
        layer.bias.sub_(mean * scale)
        layer.initialised.fill_(True)
        again: Tensor = layer.forward(*inputs)
        return again

    first_pass(model, x, layers, standardise)
