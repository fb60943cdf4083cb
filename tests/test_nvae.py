"""NVAE: golden numbers, published sizes, other configurations beside a second implementation."""

from __future__ import annotations

from typing import Any

ARGS: dict[str, Any] = {
    "num_channels_enc": 8,
    "num_channels_dec": 8,
    "num_latent_scales": 2,
    "num_latent_per_group": 4,
    "ada_groups": False,
    "min_groups_per_scale": 1,
    "num_mixture_dec": 10,
    "num_x_bits": 8,
    "use_se": True,
    "res_dist": True,
    "arch_instance": "res_mbconv",
}
SMALL = {
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1,
}
A = {**ARGS, **SMALL, "dataset": "cifar10", "num_groups_per_scale": 3, "ada_groups": True}
A |= {"num_nf": 1}
B = {**ARGS, **dict.fromkeys(SMALL, 2), "dataset": "mnist", "num_groups_per_scale": 2}
B |= {"num_nf": 0}
OPTIONS: dict[str, dict[str, Any]] = {"A": A, "B": B}


# --- golden numbers ------------------------------------------------------------------------------
"""PLACEHOLDER"""
