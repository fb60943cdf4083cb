"""State dicts of the released code, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ladder.errors import UserError
from ladder.released import renamed
from ladder.systems.lvae_conv.config import Config
from ladder.systems.lvae_conv.model import build
from ladder.systems.lvae_conv.parts import spell

# Parts of our names and theirs. Their layers count from 0 at the data; `#` is that number.
PARTS = {
    "bottom_up.stem.conv": "first_bottom_up.0",
    "bottom_up.stem.block": "first_bottom_up.2.res",
    "bottom_up.rungs.#.net": "bottom_up_layers.#.net",
    "top_down.layers.#.prior.net": "top_down_layers.#.stochastic.conv_in_p",
    "top_down.layers.#.merge.normal.net": "top_down_layers.#.stochastic.conv_in_q",
    "top_down.layers.#.merge.mix.conv": "top_down_layers.#.merge.layer.0",
    "top_down.layers.#.merge.mix.block": "top_down_layers.#.merge.layer.1",
    "top_down.layers.#.combine.widen": "top_down_layers.#.stochastic.conv_out",
    "top_down.layers.#.combine.mix.conv": "top_down_layers.#.skip_connection_merger.layer.0",
    "top_down.layers.#.combine.mix.block": "top_down_layers.#.skip_connection_merger.layer.1",
    "top_down.layers.#.combine.net": "top_down_layers.#.deterministic_block",
    "top_down.finish.blocks": "final_top_down",
    "likelihood.conv": "likelihood.parameter_net",
}


def convert_released(state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Rename the tensors of a released checkpoint; values are not touched.

    Args:
        state_dict: The released model's `state_dict()`, also one wrapped for data parallelism
            (every key beginning with `module.`).
        config: The model section of the same model.

    Returns:
        The state dict for `build_model(config=config)`: each of its keys, from each of theirs.

    Raises:
        UserError: If keys are missing, left over or of another shape, a line for each of their
            layers; or if no released layout is known for the configuration.
    """
    _check_known(config)
    with torch.device("meta"):
        own = build(config).state_dict()
    names = {key: released_name(key, config) for key in own}
    return renamed(state_dict, own, names, layer=r"\w+_layers\.\d+")


def _check_known(config: Config) -> None:
    if not config.batch_norm:
        raise UserError("convert_released: no released layout is known for 'batch_norm: false'")
    kind = config.likelihood.kind
    if kind not in ("bernoulli", "logistic_mixture"):
        raise UserError(
            f"convert_released: the released '{kind}' likelihood reads its parameters "
            "differently; choose from bernoulli, logistic_mixture"
        )


def released_name(own: str, config: Config) -> str:
    """Their name for one of our keys."""
    if own == "top_down.start.value":
        return f"top_down_layers.{len(config.stack) - 1}.top_prior_params"
    layer = re.search(r"\.z(\d+)\.", own)
    number = str(int(layer[1]) - 1) if layer else ""
    pattern = own.replace(layer[0], ".#.") if layer else own
    ours = next(part for part in PARTS if pattern.startswith(f"{part}."))
    theirs = PARTS[ours].replace("#", number)
    return theirs + _inner(pattern.removeprefix(ours), ours, config)


def _inner(rest: str, part: str, config: Config) -> str:
    """Their name for what is inside a part: blocks count their modules, convolutions have none."""
    places = {name: i for i, name in enumerate([*spell(config.block), "gate"])}
    if part == "top_down.finish.blocks" and config.initial_downscaling:
        # Their list begins with the resizing.
        rest = re.sub(r"^\.(\d+)", lambda m: f".{int(m[1]) + 1}", rest)
    rest = re.sub(r"\.f\.(\w+)", lambda m: f".block.{places[m[1]]}", rest)
    return rest.replace(".resample.", ".pre_conv.").replace(".block.block.", ".res.block.")
