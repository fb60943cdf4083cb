"""State dicts of the released PyTorch code, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ladder.errors import UserError
from ladder.released import renamed
from ladder.systems.biva.config import Config
from ladder.systems.biva.model import build

LAYER = r"stages\.\d+\.\w+|projection"

# Of our names, after the layer's, and of theirs, after the stage's.
PARTS = {
    "climb.bu.blocks": "q_bu_convs.layers",
    "climb.td.blocks": "q_td_convs.layers",
    "chain.blocks": "q_convs.layers",
    "td_prior.net.1": "td_stochastic.px2z",
    "bu_prior.prior.net.1": "bu_stochastic.px2z",
    "bu_prior.block": "bu_condition",
    "prior.net.net.1": "stochastic.px2z",
    "merge.block": "merge",
    "combine.chain.blocks": "p_convs.layers",
}
BLOCK = {"first": "conv1", "second": "conv2", "aux": "aux_op"}
TOP = "top_down.start.value"
NORMED = {"v": "weight_v", "g": "weight_g", "bias": "bias"}


def convert_released(state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Rename the tensors of a released checkpoint; only p(z_L) gets an axis for the batch.

    Args:
        state_dict: The released model's `state_dict()`, as in `model.pth`, also one wrapped for
            data parallelism (every key beginning with `module.`).
        config: The model section of the same model.

    Returns:
        The state dict for `build_model(config=config)`: each of its keys, from each of theirs.

    Raises:
        UserError: If keys are missing, left over or of another shape, a line for each of their
            layers; if a layer of theirs was not initialised yet; or if no released layout is
            known for the configuration.
    """
    if config.conditional_bu and any(layer.dim for layer in config.stack[:-1]):
        raise UserError(
            "convert_released: no released layout is known for 'conditional_bu' with dense layers"
        )
    with torch.device("meta"):
        own = build(config).state_dict()
    names = {key: released_name(key, config) for key in own}
    own[TOP] = own[TOP][0]  # theirs has no axis for the batch
    converted = renamed(state_dict, own, names, LAYER)
    converted[TOP] = converted[TOP].unsqueeze(0)
    for key in converted:
        if key.endswith(".initialised"):
            converted[key] = converted[key].bool()
    new = [names[k] for k, v in converted.items() if v.dtype == torch.bool and not v.all()]
    if new:
        raise UserError(f"convert_released: '{new[0]}' is false; the model was never trained")
    return converted


def released_name(own: str, config: Config) -> str:
    """Their name for one of our keys."""
    part, _, last = own.rpartition(".")
    if part == "likelihood.conv":
        return _normed("projection.1", last, dense=False)
    top = len(config.stack) - 1
    if own == TOP:
        return f"stages.{top}.stochastic.prior"
    found = re.fullmatch(r"\w+\.\w+\.z(\d+)\.(.+)", part)
    assert found is not None
    i, rest = int(found[1]) - 1, found[2]
    stage, dense = f"stages.{i}", config.stack[i].dim is not None
    up = own.startswith("bottom_up.")
    if rest == "posterior.net.1" or rest == "merge.posterior.net.1":
        return _normed(f"{stage}.{_head(config, up, i == top)}.qx2z", last, dense)
    if rest.endswith("prior.net.1") or rest == "prior.net.net.1":
        return _normed(f"{stage}.{PARTS[rest]}", last, dense)
    if rest.endswith("widen.0"):
        return _normed(f"{stage}.{_projection(config, rest, up)}.linear", last, dense=True)
    if up and rest.startswith("merge."):
        return _normed(f"{stage}.q_top.{BLOCK[rest.split('.')[1]]}", last, dense=False)
    ours = next(ours for ours in PARTS if rest.startswith(f"{ours}."))
    *places, block = rest.removeprefix(f"{ours}.").split(".")
    return _normed(".".join([stage, PARTS[ours], *places, BLOCK[block]]), last, dense=False)


def _head(config: Config, up: bool, top: bool) -> str:
    """Their name for the heads of a posterior."""
    if config.inference != "bidirectional" or top:
        return "stochastic"
    return "bu_stochastic" if up else "td_stochastic"


def _projection(config: Config, rest: str, up: bool) -> str:
    """Their name for what widens a dense z."""
    if config.inference != "bidirectional":
        return "q_proj" if up else "p_proj"
    return "bu_proj" if up else "z_proj"


def _normed(part: str, last: str, dense: bool) -> str:
    """Their name for a tensor of a normed layer."""
    if last == "initialised":
        return f"{part}.initialized"
    return f"{part}.{'linear' if dense else 'conv'}.{NORMED[last]}"
