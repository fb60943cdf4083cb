"""Networks of declared hierarchies: dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def mlp(width: int, hidden: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """Dense layers of the widths in `hidden`, each followed by the activation.

    Args:
        width: Width of the input.
        hidden: Widths of the layers; an empty list is the identity.
        activation: A key of `ACTIVATIONS`.

    Returns:
        A module `[B, width] -> [B, hidden[-1]]`.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([width, *hidden]):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
