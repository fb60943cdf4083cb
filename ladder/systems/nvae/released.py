"""Checkpoints of the released code, under our names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count

import torch
from torch import Tensor

from ladder.errors import UserError
from ladder.released import renamed
from ladder.systems.nvae.config import Config
from ladder.systems.nvae.model import build

# A second name of the weights of convolutions without weight norm, in released state dicts.
ALIAS = ".weight_normalized"
LAYER = r"(?:pre_process|enc_tower|dec_tower|post_process|nf_cells|enc_sampler|dec_sampler)\.\d+"

# Inside a cell, theirs by ours; `{n}` counts the modules of an inverted residual.
INNER = {
    r"skip\.parts\.0\.": "skip.conv_1.",
    r"skip\.parts\.1\.": "skip.conv_2.",
    r"skip\.parts\.2\.": "skip.conv_3.",
    r"skip\.parts\.3\.": "skip.conv_4.",
    r"skip\.conv\.": "skip.1.",
    r"gate\.first\.": "se.se.0.",
    r"gate\.last\.": "se.se.2.",
    r"parts\.(\d)\.norm\.": r"_ops.\1.bn_act.",
    r"parts\.(\d)\.conv\.": r"_ops.\1.conv_0.",
}
INVERTED = {
    "norm_in": (0, "bn."),
    "expand": (1, "conv.0."),
    "norm_wide": (1, "conv.1."),
    "middle": (2, "conv.0."),
    "norm_deep": (2, "conv.1."),
    "project": (3, ""),
    "norm_out": (4, "bn."),
}
FLOW = {"wide": "conv.convz.0", "deep": "conv.convz.2", "narrow": "mu.conv_0"}


def convert_released(state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Rename the tensors of a released checkpoint; values are not touched.

    Args:
        state_dict: The entry `state_dict` of a released checkpoint (also with `module.` before
            every key).
        config: The model section of the same model.

    Returns:
        The state dict for `build_model(config=config)`: each of its keys, from each of theirs but
        for second names of the same weights.

    Raises:
        UserError: If keys are missing, left over or of another shape, a line for each of their
            layers; or if no released layout is known for the configuration.
    """
    if config.cells in ("res_elu", "res_bnelu"):
        raise UserError(
            f"convert_released: no released layout is known for 'cells: {config.cells}'"
        )
    with torch.device("meta"):
        own = build(config).state_dict()
    known = places(config)
    names = {key: released_name(key, known) for key in own}
    theirs = {key: t for key, t in state_dict.items() if not key.endswith(ALIAS)}
    for key in [key for key in theirs if key.removeprefix("module.") == "prior_ftr0"]:
        constant = theirs.pop(key)
        if config.layers > 1:  # else it is there, and nothing depends on it
            theirs[key] = constant.unsqueeze(0)
    return renamed(theirs, own, names, LAYER)


class Place:
    """Where a part of ours is in the released model.

    Args:
        name: Their name for it.
        up: Whether it is a cell that doubles the resolution.
    """

    def __init__(self, name: str, up: bool = False) -> None:
        self.name, self.up = name, up


def released_name(own: str, known: Mapping[str, Place]) -> str:
    """Their name for one of our keys, given the places of our parts."""
    part = own
    while part not in known:
        part = part.rpartition(".")[0]
    rest = own.removeprefix(f"{part}.").replace("log_norm", "log_weight_norm")
    place = known[part]
    if part == "top_down.start":
        return place.name
    if inverted := re.match(r"parts\.(\d)\.(norm_\w+|expand|middle|project)\.", rest):
        number, prefix = INVERTED[inverted[2]]
        head = f"_ops.{inverted[1]}.conv.{number + place.up}.{prefix}"
        return f"{place.name}.{head}{rest[inverted.end() :]}"
    for ours, theirs in INNER.items():
        rest = re.sub(f"^{ours}", theirs, rest)
    return f"{place.name}.{rest}"


def places(config: Config) -> dict[str, Place]:
    """Their place for each of our parts."""
    found = {
        "bottom_up.stem": Place("stem"),
        "top_down.start": Place("prior_ftr0"),
        "likelihood.conv": Place("image_conditional.1"),
        **dict(_upward(config)),
        **dict(_downward(config)),
        **dict(_finishing(config)),
    }
    for i in range(1, config.layers + 1):
        found |= dict(_samplers(config, f"top_down.layers.z{i}", config.layers - i))
    return found


def _merge(config: Config, layer: str) -> str:
    return f"{layer}.merge.merge" if config.flows else f"{layer}.merge"


def _upward(config: Config) -> Iterator[tuple[str, Place]]:
    cells, slots, layers = count(), count(), count(1)
    for k in range(config.blocks * config.preprocess_cells):
        yield f"bottom_up.cells.{next(cells)}", Place(f"pre_process.{k}")
    for scale, groups in enumerate(config.groups, start=1):
        for _ in range(groups):
            for _ in range(config.climb):
                yield f"bottom_up.cells.{next(cells)}", Place(f"enc_tower.{next(slots)}")
            i = next(layers)
            if i < config.layers:  # the top one looks at nothing above
                merge = _merge(config, f"top_down.layers.z{i}")
                yield f"{merge}.combiner.conv", Place(f"enc_tower.{next(slots)}.conv")
        if scale < len(config.groups):
            yield f"bottom_up.cells.{next(cells)}", Place(f"enc_tower.{next(slots)}")


def _downward(config: Config) -> Iterator[tuple[str, Place]]:
    if config.layers == 1:
        yield "top_down.layers.z1.combine.conv", Place("stem_decoder")
        return
    slots, i = count(), config.layers
    for scale, groups in reversed(list(enumerate(config.groups))):
        for group in range(groups):
            layer, cells = f"top_down.layers.z{i}", count()
            if group == 0 and scale < len(config.groups) - 1:
                up = Place(f"dec_tower.{next(slots)}", up=True)
                yield f"{layer}.transition.cells.{next(cells)}", up
            for _ in range(config.decoder_cells if i < config.layers else 0):
                place = Place(f"dec_tower.{next(slots)}")
                yield f"{layer}.transition.cells.{next(cells)}", place
            yield f"{layer}.combine.conv", Place(f"dec_tower.{next(slots)}.conv")
            i -= 1


def _finishing(config: Config) -> Iterator[tuple[str, Place]]:
    for k in range(config.blocks * config.postprocess_cells):
        up = k % config.postprocess_cells == 0
        yield f"top_down.finish.cells.{k}", Place(f"post_process.{k}", up)


def _samplers(config: Config, layer: str, i: int) -> Iterator[tuple[str, Place]]:
    """Of the i-th layer from the top, which is number 0."""
    merge = _merge(config, layer)
    if i == 0:
        yield f"{merge}.neck", Place("enc0.1")
        yield f"{merge}.sampler", Place("enc_sampler.0")
    else:
        yield f"{merge}.combiner.sampler", Place(f"enc_sampler.{i}")
        yield f"{layer}.transition.sampler", Place(f"dec_sampler.{i - 1}.1")
    for pair in range(config.flows):
        for half in (0, 1):
            cell = f"nf_cells.{i * config.flows + pair}.cell{half + 1}"
            for ours, theirs in FLOW.items():
                yield f"{layer}.merge.flow.pairs.{pair}.{half}.{ours}", Place(f"{cell}.{theirs}")
