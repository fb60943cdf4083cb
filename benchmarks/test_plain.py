"""The plain loop and ours take the same step, so that their times may be compared.

pytest benchmarks/test_plain.py
"""

from __future__ import annotations

import plain
import pytest
import torch
from plain_loop import ORDINARY, Plain, ordinary

from ladder.bench.case import Case, configured, images
from ladder.build import build_model
from ladder.train.state import new_state
from ladder.train.step import train_step

PRESETS = ["mnist_2layer", "tiny_lvae_conv", "tiny_vdvae", "tiny_nvae", "tiny_biva"]


@pytest.mark.parametrize("preset", PRESETS)
def test_both_take_the_same_steps(preset: str) -> None:
    case = Case(preset, [], 8)
    config, x = configured(case), images(case, 8)
    state, loop = new_state(config, torch.device("cpu"), total=100), Plain(config, total=100)
    for _ in range(2):
        train_step(state, x, config)
        loop(x)
        ours = state.meter.read()
        assert loop.log["loss"] == pytest.approx(ours["train/loss"], rel=1e-4)
        assert loop.log["log_px"] == pytest.approx(-ours["train/nll"], rel=1e-4)
        state.meter.clear()
    names = state.model.state_dict().keys()
    assert loop.model.state_dict().keys() == names


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_of_the_plain_loop_are_torchs(preset: str) -> None:
    model = build_model(preset)
    ordinary(model)
    assert not {type(module) for module in model.modules()} & ORDINARY.keys()


def test_a_row_has_what_the_table_needs() -> None:
    (row,) = plain.measure(Case("tiny_vdvae", [], 2), [("eager", "float32")], 1)
    assert row["flops_per_step"] == plain.plain_flops(Case("tiny_vdvae", [], 2)) > 0
    assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
    assert plain.same({**row, "threads": 1}, {**row, "threads": 1, "seconds": 0.0})
