"""The configuration that a released checkpoint was trained with, from what it says itself."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any, get_args

from ladder.errors import UserError
from ladder.systems.nvae.config import CellNames

# What released files hold besides tensors and plain values; a record of options, inert.
RELEASED_TYPES = (Namespace,)

PRESETS = {
    "mnist": "nvae_mnist",
    "omniglot": "nvae_mnist",
    "cifar10": "nvae_cifar10",
    "celeba_64": "nvae_celeba64",
    "imagenet_32": "nvae_imagenet32",
    "celeba_256": "nvae_celebahq256",
    "ffhq": "nvae_ffhq256",
}
OTHER = "nvae_imagenet32"  # has the likelihood of all other sets
BINARY = ("mnist", "omniglot")
SIZES = {"cifar10": 32, "ffhq": 256}
MOST = 1024  # of any count; a damaged file must not ask for all memory

# Ours by theirs, where the values are the same.
SAME = {
    "num_channels_enc": "channels",
    "num_channels_dec": "decoder_channels",
    "num_latent_per_group": "zdim",
    "num_preprocess_blocks": "blocks",
    "num_preprocess_cells": "preprocess_cells",
    "num_postprocess_cells": "postprocess_cells",
    "num_cell_per_cond_enc": "encoder_cells",
    "num_cell_per_cond_dec": "decoder_cells",
    "num_nf": "flows",
    "use_se": "squeeze_excitation",
    "res_dist": "residual_posterior",
    "arch_instance": "cells",
}
# What checkpoints of the first versions do not say.
MISSING = {
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_mixture_dec": 10,
    "num_x_bits": 8,
    "arch_instance": "res_mbconv",
}


def unpack_released(content: Any) -> tuple[Any, Mapping[str, Any] | None]:
    """Split a released checkpoint into its weights and its options.

    Args:
        content: What the file holds: `state_dict` and `args` among others, or a bare state dict.

    Returns:
        The state dict, and options by name for `released_config`; `None` if there are none.
    """
    if not (isinstance(content, Mapping) and "state_dict" in content):
        return content, None
    args = content.get("args")
    return content["state_dict"], vars(args) if isinstance(args, Namespace) else None


def released_config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Our configuration for the options of the released training script.

    Args:
        said: Options by name, such as `num_latent_scales`.

    Returns:
        A configuration file's content: `preset`, `model`, and `data` where the preset's are
        others.

    Raises:
        UserError: If an option is missing, or is none of a model that can be built.
    """
    said = MISSING | dict(said)
    dataset = _option(said, "dataset", str)
    if _option(said, "num_preprocess_blocks") != _option(said, "num_postprocess_blocks"):
        raise UserError(
            "its 'args' have num_preprocess_blocks other than num_postprocess_blocks; the output "
            "of such a model has not the size of its input"
        )
    cells = _option(said, "arch_instance", str)
    if cells not in get_args(CellNames):
        raise UserError(f"its 'args' name the arch_instance '{cells}', which is not known")
    kinds = {"use_se": bool, "res_dist": bool, "arch_instance": str}
    model = {ours: _option(said, theirs, kinds.get(theirs, int)) for theirs, ours in SAME.items()}
    model |= {"groups": _groups(said), **_data(dataset), "likelihood": _likelihood(said, dataset)}
    config = {"preset": PRESETS.get(dataset, OTHER), "model": model}
    if dataset not in PRESETS or dataset == "omniglot":
        config["data"] = {"name": dataset}
    return config


def _option(said: Mapping[str, Any], name: str, kind: type = int, least: int = 0) -> Any:
    if name not in said:
        raise UserError(f"its 'args' do not say '{name}'")
    value = said[name]
    if kind is int and isinstance(value, int) and not least <= value <= MOST:
        raise UserError(f"its 'args' have {name}={value}, which should be from {least} to {MOST}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"its 'args' have {name}={value!r}, which should be of type {kind.__name__}"
        )
    return value


def _groups(said: Mapping[str, Any]) -> list[int]:
    """Layers of each latent scale, from the data up: halved going up, if they adapt."""
    groups = [_option(said, "num_groups_per_scale", least=1)]
    for _ in range(_option(said, "num_latent_scales", least=1) - 1):
        halved = max(groups[-1] // 2, _option(said, "min_groups_per_scale", least=1))
        groups.append(halved if _option(said, "ada_groups", bool) else groups[-1])
    return groups


def _data(dataset: str) -> dict[str, Any]:
    if dataset in BINARY:
        return {"shape": [1, 28, 28], "pad": 2}
    named = re.search(r"_(\d+)$", dataset)
    size = SIZES.get(dataset) or (int(named[1]) if named else None)
    if size is None:
        raise UserError(f"its 'args' name the dataset '{dataset}', whose size is not known")
    return {"shape": [3, size, size], "pad": 0}


def _likelihood(said: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    if dataset in BINARY:
        return {"kind": "bernoulli"}
    mixtures, bits = _option(said, "num_mixture_dec"), _option(said, "num_x_bits")
    if mixtures == 1 and bits < 8:
        raise UserError("its 'args' have num_mixture_dec=1 with num_x_bits below 8")
    if mixtures == 1:
        return {"kind": "soft_normal"}
    return {"kind": "logistic_mixture", "mixtures": mixtures, "bits": bits, "bins": "nvae"}
