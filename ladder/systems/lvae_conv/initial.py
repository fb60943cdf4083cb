"""Data-dependent initialisation: every convolution scaled by its outputs for some data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ladder.errors import UserError
from ladder.first_pass import first_pass
from ladder.model import HierarchicalVAE

STD = 0.1  # of every channel of every convolution's output
FLOOR = 1e-5  # of a variance


@torch.no_grad()
def initialise(model: HierarchicalVAE, x: Tensor) -> None:
    """Draw all weights anew so that each convolution's outputs for `x` have mean 0 and std 0.1.

    Weights are drawn from N(0, 2 / fan_in) and biases set to 0; then, in one forward pass in
    training mode, each convolution is scaled and shifted by its own outputs, channel by channel,
    before the next one sees them. Nothing happens if the model's config says
    `data_dependent_init: false`. Noise comes from torch's generator.

    Args:
        model: A new model; changed in place.
        x: Data as training sees them, `[B, C, H, W]`.

    Raises:
        UserError: If there is only one datum, which has no spread.

    References:
        Weight Normalization (Salimans & Kingma, 2016), section 3, https://arxiv.org/abs/1602.07868
    """
    if model.config is not None and not model.config.data_dependent_init:
        return
    if len(x) < 2:
        raise UserError("model.data_dependent_init: needs a batch of at least 2 data, not 1")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for conv in convolutions:
        nn.init.kaiming_normal_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    first_pass(model, x, convolutions, _standardise)


def _standardise(
    conv: nn.Conv2d | nn.ConvTranspose2d, _: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    mean = output.mean(dim=(0, 2, 3))
    scale = STD / (output.var(dim=(0, 2, 3)) + FLOOR).sqrt()
    out_axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    conv.weight.mul_(scale.unflatten(0, [-1 if i == out_axis else 1 for i in range(4)]))
    if conv.bias is not None:
        conv.bias.copy_((conv.bias - mean) * scale)
    return (output - mean[:, None, None]) * scale[:, None, None]
