"""Adamax: torch's update, and nothing at all once a step was not finite."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ladder.build import resolve
from ladder.config import Config
from ladder.errors import UserError, WorkFailed
from ladder.pretrained import pointed, read_weights
from ladder.train import fit, loop
from ladder.train.adamax import Adamax
from ladder.train.checkpoint import restore, save
from ladder.train.loop import batches, set_up
from ladder.train.state import State, new_state
from ladder.train.step import train_step

TINY = {
    "model": {"system": "hierarchy", "shape": [1, 8, 8], "layers": [{"dim": 3, "hidden": [8]}]},
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 20, "batch_size": 100, "checkpoint_every": 10, "optimizer": "adamax"},
}
SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def tiny(*words: str) -> Config:
    return resolve(TINY, ["train.device=cpu", *words])


def parameters(dtype: torch.dtype, device: str = "cpu") -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape, dtype=dtype).to(device)) for shape in SHAPES]


def give_gradients(step: int, *many: list[nn.Parameter]) -> None:
    """The same gradients for each; 0 everywhere at step 3, and for one element at all steps."""
    torch.manual_seed(step)
    for row in zip(*many, strict=True):
        gradient = torch.randn_like(row[0]) * (step != 3)
        gradient.view(-1)[0] = gradient.view(-1)[0] if gradient.numel() == 1 else 0.0
        for parameter in row:
            parameter.grad = gradient.clone()


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    keys = ("step", "exp_avg", "exp_inf")
    return [state[key].clone() for state in optimizer.state.values() for key in keys]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_torch_s(dtype: torch.dtype, rtol: float, weight_decay: float) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    options: Any = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    one, two = Adamax(ours, **options), torch.optim.Adamax(theirs, **options)
    for step in range(30):
        give_gradients(step, ours, theirs)
        for optimizer in (one, two):
            optimizer.param_groups[0]["lr"] = 0.03 / (1 + step)
            optimizer.step()
    for a, b in zip([*ours, *moments(one)], [*theirs, *moments(two)], strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("corrected", [False, True])
def test_it_is_the_formula_with_and_without_correction(corrected: bool) -> None:
    ours = parameters(torch.float64)
    theirs = [p.detach().numpy().copy() for p in ours]
    means, peaks = ([np.zeros_like(w) for w in theirs] for _ in range(2))
    optimizer = Adamax(ours, 0.03, (0.8, 0.95), 1e-3, bias_correction=corrected)
    for step in range(30):
        give_gradients(step, ours)
        optimizer.step()
        for i, parameter in enumerate(ours):
            assert parameter.grad is not None
            gradient = parameter.grad.numpy()
            means[i] = 0.8 * means[i] + 0.2 * gradient
            peaks[i] = np.maximum(0.95 * peaks[i], np.abs(gradient) + 1e-3)
            divisor = 1.0 - 0.8 ** (step + 1) if corrected else 1.0
            theirs[i] = theirs[i] - 0.03 * means[i] / divisor / peaks[i]
            np.testing.assert_allclose(parameter.detach().numpy(), theirs[i], 1e-12, 1e-14)


def test_the_first_uncorrected_step_is_a_tenth_of_the_rate() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    weight.grad = torch.tensor([5.0, -0.01], dtype=torch.float64)
    Adamax([weight], lr=2e-3, eps=1e-300, bias_correction=False).step()
    expected = torch.tensor([1.0 - 2e-4, -1.0 + 2e-4], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_step_that_failed_changes_nothing(
    dtype: torch.dtype, good: int, corrected: bool
) -> None:
    ours, clean = parameters(dtype), parameters(dtype)
    one, two = (
        Adamax(many, weight_decay=0.1, bias_correction=corrected) for many in (ours, clean)
    )
    failed = one.found_inf = torch.zeros(())
    for step in range(good):
        give_gradients(step, ours, clean)
        one.step(), two.step()
    before = [p.detach().clone() for p in ours]
    failed.fill_(1.0)
    for value in (float("nan"), float("inf"), 3e38):
        for parameter in ours:
            parameter.grad = torch.full_like(parameter, value)
        one.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
    if good:
        assert all(torch.equal(a, b) for a, b in zip(moments(one), moments(two), strict=True))
    failed.zero_()  # and had nothing happened, training would go on
    give_gradients(9, ours, clean)
    one.step(), two.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, clean, strict=True))


@pytest.mark.parametrize("corrected", [False, True])
def test_the_host_is_asked_nothing(corrected: bool) -> None:
    """Meta tensors have no values: whoever asks for one gets an error."""
    ours = parameters(torch.float32, "meta")
    optimizer = Adamax(ours, weight_decay=0.1, bias_correction=corrected)
    optimizer.found_inf = torch.zeros((), device="meta")
    for _ in range(2):
        for parameter in ours:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    with pytest.raises(RuntimeError, match="meta"):
        next(iter(optimizer.state.values()))["step"].item()


def test_a_parameter_without_a_gradient_stays() -> None:
    ours = parameters(torch.float64)
    before, optimizer = ours[1].detach().clone(), Adamax(ours)
    give_gradients(0, ours)
    ours[1].grad = None
    optimizer.step()
    assert torch.equal(ours[1], before)
    assert len(optimizer.state) == len(ours) - 1


def test_its_state_comes_back(tmp_path: Path) -> None:
    ours = parameters(torch.float32)
    optimizer = Adamax(ours)
    give_gradients(0, ours)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = copy.deepcopy(ours)
    other = Adamax(again)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in (1, 2):
        give_gradients(step, ours, again)
        optimizer.step(), other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_a_state_says_whether_it_was_corrected() -> None:
    ours = parameters(torch.float32)
    optimizer = Adamax(ours, bias_correction=False)
    saved = copy.deepcopy(optimizer.state_dict())
    other = Adamax(ours)
    other.load_state_dict(saved)
    assert other.param_groups[0]["bias_correction"] is False
    del saved["param_groups"][0]["bias_correction"]  # from before there was a choice
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["bias_correction"] is True
    give_gradients(0, ours)
    optimizer.step()


# --- in the loop --------------------------------------------------------------------------------


def last(run: Path) -> Path:
    path = pointed(run / "checkpoints", "last")
    assert path is not None
    return path


@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_resuming_is_bit_exact(tmp_path: Path, ema: str) -> None:
    words = (f"train.ema={ema}", "train.weight_decay=0.01", "train.warmup_steps=15")
    fit(tiny(*words), tmp_path / "whole", quiet=True)
    fit(tiny(*words, "train.steps=7"), tmp_path / "parts", quiet=True)
    fit(tiny(*words), tmp_path / "parts", resume=True, quiet=True)
    one, two = (read_weights(last(tmp_path / r) / "model.safetensors") for r in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    ends = [torch.load(last(tmp_path / r) / "state.pt") for r in ("whole", "parts")]
    rows = [list(end["optimizer"]["state"].values()) for end in ends]
    for a, b in zip(*rows, strict=True):
        assert a["step"].item() == 20
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_inf"))


def test_the_configuration_chooses_the_correction(tmp_path: Path) -> None:
    words, moved = ("train.betas=[0.75, 0.999]", "train.lr=0.01"), []
    for each in (tiny(*words, "train.bias_correction=false"), tiny(*words)):
        state, x = start(each, tmp_path)
        before = [p.detach().clone() for p in state.parameters]
        train_step(state, x, each)
        moved.append([p.detach() - b for p, b in zip(state.parameters, before, strict=True)])
    for one, two in zip(*moved, strict=True):
        torch.testing.assert_close(one, two / 4, rtol=1e-3, atol=1e-7)
    assert max(one.abs().max() for one in moved[0]) == pytest.approx(0.0025, rel=1e-3)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_checkpoint_from_before_the_choice_takes_the_configurations(
    tmp_path: Path, corrected: bool
) -> None:
    state, x = start(tiny(), tmp_path)
    train_step(state, x, tiny())
    path = save(tmp_path, state, keep=1)
    rest = torch.load(path / "state.pt")
    del rest["optimizer"]["param_groups"][0]["bias_correction"]
    torch.save(rest, path / "state.pt")
    again, _ = start(tiny(f"train.bias_correction={str(corrected).lower()}"), tmp_path)
    restore(path, again)
    assert again.optimizer.param_groups[0]["bias_correction"] is corrected
    ours, theirs = (list(s.optimizer.state.values()) for s in (state, again))
    for one, two in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_only_adamax_can_leave_the_correction_out(optimizer: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny("train.bias_correction=false", f"train.optimizer={optimizer}")
    assert str(caught.value) == (
        f"train: 'bias_correction' false goes with 'optimizer' adamax, not with {optimizer}"
    )


def start(config: Config, out: Path) -> tuple[State, Tensor]:
    setup = set_up(config, out)
    return new_state(config, setup.device), next(batches(setup, 0))


def test_a_loss_that_is_not_finite_leaves_the_weights(tmp_path: Path) -> None:
    config = tiny("data.binarize=none")
    state, x = start(config, tmp_path)
    train_step(state, x, config)
    before = [p.detach().clone() for p in state.parameters]
    train_step(state, torch.full_like(x, float("nan")), config)
    train_step(state, x, config)
    assert state.failed.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))
    assert all(row["step"].item() == 1 for row in state.optimizer.state.values())


def test_a_failed_run_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(state: State, x: Tensor, config: Config, of: int) -> None:
        if state.step == 13:
            with torch.no_grad():
                state.parameters[0].view(-1)[0] = float("nan")
        train_step(state, x, config, of)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(WorkFailed, match=r"step 14: .*step-00000010"):
        fit(tiny(), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
def test_elements_are_clipped_after_the_norm(tmp_path: Path, optimizer: str) -> None:
    words = ("data.binarize=none", f"train.optimizer={optimizer}")
    plain, both = tiny(*words), tiny(*words, "train.grad_clip=2.0", "train.grad_clip_value=0.1")
    gradients = []
    for config in (plain, both):
        state, x = start(config, tmp_path)
        train_step(state, x, config)
        gradients.append(
            torch.cat([p.grad.flatten() for p in state.parameters if p.grad is not None])
        )
    norm = gradients[0].norm()
    expected = gradients[0] * 2.0 / norm
    assert norm > 2.0
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradients[1], expected.clamp(-0.1, 0.1), rtol=1e-5, atol=1e-7)
