"""NVAE: golden numbers, published sizes, other configurations beside a second implementation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import nvae_reference as reference
import pytest
import torch
from torch import Tensor, nn

import ladder
from ladder.build import build_model, list_systems, resolve
from ladder.errors import UserError
from ladder.execution import compile_layers
from ladder.model import HierarchicalVAE
from ladder.objectives import balance, elbo, fair_shares, iw_elbo, log_weight, per_datum
from ladder.penalties import BatchNormScales, SpectralNorms
from ladder.systems import nvae
from ladder.systems.nvae.arguments import released_config
from ladder.systems.nvae.cells import CELLS
from ladder.systems.nvae.parts import SoftNormalHead, soft_normal

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
