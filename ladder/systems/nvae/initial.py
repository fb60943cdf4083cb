"""Data-dependent initialisation of cells that have no batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ladder.errors import UserError
from ladder.first_pass import first_pass
from ladder.model import HierarchicalVAE
from ladder.systems.nvae.cells import Residual
from ladder.weightnorm import FLOOR, WeightNormConv2d, norms

SPREAD = 5.0  # outputs have a standard deviation of one over this


@torch.no_grad()
def initialise(model: HierarchicalVAE, x: Tensor) -> None:
    """Give the outputs of `res_elu` convolutions mean 0 and standard deviation 1/5 for some data.

    In one forward pass in training mode each convolution's norms and biases are set by its own
    outputs, channel by channel, before the next one sees them. Nothing happens to models whose
    cells have batch norm. Noise comes from torch's generator.

    Args:
        model: A new model; changed in place.
        x: Data as training sees them, `[B, C, H, W]`.

    Raises:
        UserError: If there is only one datum, which may have no spread.

    References:
        Weight Normalization (Salimans & Kingma, 2016), section 3, https://arxiv.org/abs/1602.07868
    """
    parts = [m for m in model.modules() if isinstance(m, Residual)]
    convolutions = [part.conv for part in parts if isinstance(part.norm, nn.Identity)]
    if not convolutions:
        return
    if len(x) < 2:
        raise UserError("model.cells: 'res_elu' needs a batch of at least 2 data, not 1")
    first_pass(model, x, convolutions, _standardise)


def _standardise(conv: WeightNormConv2d, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    assert conv.bias is not None
    w = conv.direction()
    plain = conv.convolve(inputs[0], w / (norms(w) + FLOOR), None)
    spread, mean = torch.std_mean(plain, dim=(0, 2, 3))
    scale = 1.0 / (SPREAD * spread + FLOOR)
    conv.log_norm.copy_(scale.log()[:, None, None, None])
    conv.bias.copy_(-mean * scale)
    return conv.convolve(inputs[0], conv.effective_weight(), conv.bias)
