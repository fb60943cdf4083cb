"""Checkpoints of the released code, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ladder.errors import UserError
from ladder.released import difference, renamed
from ladder.systems.vdvae.config import Config
from ladder.systems.vdvae.model import build

# The released code's parameters, which its optimiser counts, come in this order.
ORDER = (
    "bottom_up.",
    "top_down.finish.",
    "top_down.layers.",
    "top_down.start.",
    "likelihood.",
)

LAYER = r"\w+\.\w+_blocks\.\d+|\w+\.\w+"


def convert_released(state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Rename the tensors of a released checkpoint; values are not touched.

    Args:
        state_dict: The released model's `state_dict()` (`model.th`, also with `module.` before
            every key, or `model-ema.th`).
        config: The model section of the same model.

    Returns:
        The state dict for `build_model(config=config)`: each of its keys, from each of theirs.

    Raises:
        UserError: If keys are missing, left over or of another shape, a line for each of their
            layers.
    """
    with torch.device("meta"):
        own = build(config).state_dict()
    names = {key: released_name(key, config) for key in own}
    return renamed(state_dict, own, names, LAYER)


def released_name(own: str, config: Config) -> str:
    """Their name for one of our keys."""
    part, _, rest = own.partition(".")
    if part == "bottom_up":
        rest = rest.replace("stem", "in_conv").replace("blocks", "enc_blocks")
        return f"encoder.{rest.replace('.block.', '.')}"
    if part == "likelihood":
        return f"decoder.out_net.out_{rest}"
    if layer := re.match(r"layers\.z(\d+)\.(.*)", rest):
        inner = layer[2].replace("posterior", "enc")
        return f"decoder.dec_blocks.{config.layers - int(layer[1])}.{inner}"
    if learned := re.match(r"start\.maps\.(\d+)", rest):
        resolutions = sorted(s.resolution for s in config.scales if s.layers)
        return f"decoder.bias_xs.{resolutions.index(int(learned[1]))}"
    return f"decoder.{rest.removeprefix('finish.')}"


def convert_optimizer(state: Any, config: Config) -> dict[str, dict[str, Tensor]]:
    """Take over the moments of a released optimiser (`opt.th`, apex's FusedAdam).

    Args:
        state: Its `state_dict()`: moments by the number of a parameter, and one group that counts
            the steps of all of them.
        config: The model section of the same model.

    Returns:
        By our name of a parameter: `step`, `exp_avg` and `exp_avg_sq`, as torch's AdamW has them.

    Raises:
        UserError: If it is no such state, or that of another model.
    """
    try:
        (group,) = state["param_groups"]
        step, moments = int(group["step"]), [state["state"][i] for i in group["params"]]
        pairs = [(m["exp_avg"], m["exp_avg_sq"]) for m in moments]
        sizes = [tuple(mean.shape) for mean, square in pairs if mean.shape == square.shape]
        if step < 0 or len(sizes) != len(pairs):
            raise ValueError("its moments are not alike")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(
            f"convert_optimizer: not the state of the released optimiser ({error!r})"
        ) from None
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in build(config).named_parameters()}
    names = released_order(config)
    if len(pairs) != len(names):
        raise UserError(
            f"convert_optimizer: the state is of {len(pairs)} parameters, but this configuration "
            f"has {len(names)}"
        )
    expected = {released_name(name, config): shapes[name] for name in names}
    found = dict(zip(expected, sizes, strict=True))
    if lines := difference(expected, found, LAYER):
        raise UserError(
            "convert_optimizer: the state is not of this configuration:\n" + "\n".join(lines)
        )
    return {
        name: {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
        for name, (mean, square) in zip(names, pairs, strict=True)
    }


def released_order(config: Config) -> list[str]:
    """Our names in the order of the released code's parameters, which its optimiser counts."""
    with torch.device("meta"):
        own = [name for name, _ in build(config).named_parameters()]
    return sorted(own, key=lambda name: next(i for i, p in enumerate(ORDER) if name.startswith(p)))
