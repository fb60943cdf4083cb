"""`ladder import biva FILE`: the released `model.pth`, taken strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import ladder
from ladder.build import build_model
from ladder.cli import main
from ladder.systems.biva.released import released_name

YAML = """
preset: tiny_biva
model: {filters: 4}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def released(plan: Path) -> dict[str, Tensor]:
    """A trained model's state dict as the released code names it."""
    torch.manual_seed(3)
    model = build_model(config=plan)
    state = {released_name(key, model.config): value for key, value in model.state_dict().items()}
    state["stages.2.stochastic.prior"] = state["stages.2.stochastic.prior"][0]
    return {k: torch.tensor(True) if k.endswith(".initialized") else v for k, v in state.items()}


def words(file: Path, plan: Path, out: Path, *more: str) -> list[str]:
    return ["import", "biva", str(file), "--preset", str(plan), "--out", str(out), *more]


def test_released_weights_become_a_model(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, file, out = released(plan), tmp_path / "model.pth", tmp_path / "out"
    torch.save(state, file)
    assert main(words(file, plan, out)) == 0
    loaded = ladder.from_pretrained(out)
    for name, tensor in loaded.state_dict().items():
        theirs = state[released_name(name, loaded.config)]
        assert torch.equal(tensor.reshape(theirs.shape), theirs), name
    # Weights that came from elsewhere are initialised already.
    ladder.systems.biva.initialise(loaded, torch.rand(4, 1, 8, 8))
    assert torch.equal(loaded.likelihood.conv.g, state["projection.1.conv.weight_g"])
    capsys.readouterr()
    assert main(["evaluate", str(out), "--n", "8"]) == 0
    assert "elbo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "more", "sentence"),
    [
        ({"projection.1.initialized": torch.tensor(False)}, [], "is false; the model was never"),
        ({"projection.1.conv.bias": torch.tensor([torch.nan])}, [], "holds NaN"),
        ({"projection.1.conv.bias": torch.tensor([True])}, [], "torch.bool"),
        ({"more": torch.zeros(2)}, [], "not of this configuration"),
        ({"stages.2.stochastic.prior": torch.zeros(1, 6)}, [], "1x6, not 6"),
        ({}, ["model.inference=ladder"], "not of this configuration"),
        ({}, ["--optimizer", "other.pth"], "the optimiser of system 'biva' is not known"),
    ],
)
def test_mistakes(
    changes: dict[str, Tensor],
    more: list[str],
    sentence: str,
    tmp_path: Path,
    plan: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "model.pth", tmp_path / "out"
    torch.save({**released(plan), **changes}, file)
    assert main(words(file, plan, out, *more)) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_the_configuration_has_to_be_named(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pth"
    torch.save(released(plan), file)
    assert main(["import", "biva", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "does not say its configuration; name it with --preset" in capsys.readouterr().err
