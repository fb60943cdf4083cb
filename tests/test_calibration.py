"""Batch norm fitted to samples, and samples that are not finite."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ladder
from ladder.cli import main
from ladder.errors import UserError, WorkFailed
from ladder.model import HierarchicalVAE
from ladder.sampling import draw_prior


def model() -> HierarchicalVAE:
    """A tiny NVAE whose running statistics are none of its own."""
    made = ladder.build_model("tiny_nvae").eval()
    for norm in norms(made).values():
        assert norm.running_mean is not None
        norm.running_mean.uniform_(-1.0, 1.0)
    return made


def norms(made: HierarchicalVAE) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_the_copy_differs_in_the_generative_path_s_statistics_alone() -> None:
    original = model()
    before = copy.deepcopy(original.state_dict())
    calibrated = ladder.recalibrate(original, 0.7, steps=3, n=4)
    assert all(torch.equal(before[name], t) for name, t in original.state_dict().items())
    assert not original.training
    assert not calibrated.training
    assert calibrated.config == original.config
    for name, tensor in calibrated.state_dict().items():
        statistic = name.rsplit(".", 1)[-1] in (
            *("running_mean", "running_var"),
            "num_batches_tracked",
        )
        moved = statistic and not name.startswith("bottom_up.")
        assert torch.equal(tensor, before[name]) != moved, name


def test_statistics_follow_the_samples_with_the_published_momentum() -> None:
    original = model()
    name = "top_down.layers.z2.transition.cells.0.parts.0.norm_in"
    seen: list[torch.Tensor] = []
    probe = copy.deepcopy(original)
    probe.train()
    norms(probe)[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(5)
    expected = norms(original)[name].running_mean
    assert expected is not None
    with torch.no_grad():
        for _ in range(2):
            probe.decode(8, temperature=0.5)
            expected = 0.95 * expected + 0.05 * seen[-1].mean((0, 2, 3))
    found = norms(ladder.recalibrate(original, 0.5, steps=2, n=8, seed=5))[name].running_mean
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_a_seed_repeats_it_and_leaves_the_generator_alone() -> None:
    original = model()
    torch.manual_seed(1)
    one = ladder.recalibrate(original, 0.7, steps=2, n=4, seed=3).state_dict()
    after = torch.rand(3)
    two = ladder.recalibrate(original, 0.7, steps=2, n=4, seed=3).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


def test_calibrated_statistics_are_those_of_samples() -> None:
    """Reconstructions do not look like samples; after calibration samples are normalised."""
    original = model()
    calibrated = ladder.recalibrate(original, 0.6, steps=150, n=16)
    errors = []
    for made in (original, calibrated):
        seen: list[torch.Tensor] = []
        norm = norms(made)["top_down.finish.cells.0.parts.0.norm_wide"]
        handle = norm.register_forward_hook(lambda _, inputs, y, seen=seen: seen.append(y))
        ladder.sample(made, 256, 0.6, seed=9)
        handle.remove()
        # gamma 1 and beta 0: normalised activations have mean 0 and variance 1.
        errors.append(seen[0].mean((0, 2, 3)).abs().mean().item())
    assert errors[1] < 0.1 < errors[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"steps": 0}, "recalibrate: steps=0 should be at least 1"),
        ({"n": 1}, "recalibrate: n=1 should be at least 2"),
        ({"temperature": -1.0}, "temperature: -1.0 should be a finite number"),
        ({"temperature": {"z9": 0.5}}, "no layer 'z9'"),
    ],
)
def test_arguments_out_of_range(words: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ladder.recalibrate(model(), **words)  # type: ignore[arg-type]


def test_a_model_without_batch_norm() -> None:
    with pytest.raises(UserError, match="no batch norm on its generative path"):
        ladder.recalibrate(ladder.build_model("tiny_vdvae"))


def broken(layer: str = "z2") -> HierarchicalVAE:
    made = model()
    with torch.no_grad():
        made.top_down.layers[layer].combine.conv.bias[0] = float("nan")
    return made


def test_what_is_not_finite_is_never_silent() -> None:
    with pytest.raises(WorkFailed, match=r"recalibrate: at step 1 .* not finite; use a temp"):
        ladder.recalibrate(broken(), 0.7, steps=2)
    with pytest.raises(WorkFailed, match=r"sample: 3 of 3 data are not finite.* layer z1"):
        ladder.sample(broken(), 3)
    with pytest.raises(WorkFailed, match=r"sample: 2 of 2 data are not finite.* the likelihood"):
        ladder.sample(broken("z1"), 2)
    made = broken()
    with pytest.raises(WorkFailed, match="decode: 1 of 1 data are not finite"):
        ladder.decode(made, {"z3": torch.zeros(1, 4, 2, 2)}, rest="mean")


def test_parameters_that_a_mean_does_not_show_are_looked_at() -> None:
    made = ladder.build_model("tiny_nvae", likelihood="soft_normal").eval()
    with torch.no_grad():
        made.likelihood.conv.bias[1] = float("nan")  # of the log-scale
    assert made.decode(2)[0].mean.isfinite().all()
    with pytest.raises(WorkFailed, match=r"2 of 2 data are not finite.* the likelihood"):
        ladder.sample(made, 2)
    with pytest.raises(WorkFailed, match=r"draw_prior: 3 of 3 data are not finite.* layer z1"):
        draw_prior(broken(), 3)


def test_a_datum_that_is_not_finite_is_counted() -> None:
    z = torch.zeros(3, 4, 2, 2)
    z[1] = float("nan")
    with pytest.raises(WorkFailed, match=r"1 of 3 data are not finite.* layer z3"):
        ladder.decode(model(), {"z3": z}, rest="mean")


def test_the_command_recalibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ladder.save_pretrained(model(), tmp_path / "saved")
    out = tmp_path / "samples.npy"
    words = ["sample", str(folder), "--n", "4", "--temperature", "0.7", "--out", str(out)]
    assert main([*words, "--recalibrate", "3", "--seed", "2"]) == 0
    original = ladder.from_pretrained(folder)
    calibrated = ladder.recalibrate(original, 0.7, steps=3, seed=2)
    expected = ladder.sample(calibrated, 4, 0.7, seed=2).mean
    np.testing.assert_array_equal(np.load(out), expected.numpy())
    plain = ladder.sample(original, 4, 0.7, seed=2).mean
    assert not torch.equal(plain, expected)
    capsys.readouterr()
    assert main([*words, "--recalibrate", "0"]) == 2
    assert "steps=0 should be at least 1" in capsys.readouterr().err


def test_the_command_says_so_when_samples_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ladder.save_pretrained(broken(), tmp_path / "saved")
    out = tmp_path / "samples.png"
    assert main(["sample", str(folder), "--n", "4", "--out", str(out)]) == 1
    assert "4 of 4 data are not finite" in capsys.readouterr().err
    assert not out.exists()
