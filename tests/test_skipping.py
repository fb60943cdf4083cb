"""Steps that are left out: which, what they leave alone, and that training goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ladder
from ladder.build import resolve
from ladder.config import TrainConfig
from ladder.errors import WorkFailed
from ladder.train import checkpoint, loop
from ladder.train.run import read_metrics
from ladder.train.skipping import PATIENCE, Skipping
from ladder.train.state import State, new_state
from ladder.train.step import lr_at, train_step

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "model": {"system": "hierarchy", "shape": [6], "layers": [{"dim": 2}]},
    "data": "digits",
    "train": {"steps": 9, "lr": 0.1, "ema": 0.5},
}


def skipping(**fields: Any) -> Skipping:
    return Skipping(TrainConfig(steps=1, **fields), CPU)


def left_out(skip: Skipping, norms: list[float]) -> list[bool]:
    decisions = []
    for norm in norms:
        value = torch.tensor(norm)
        decisions.append(bool(skip.decide(value, value.isfinite())[0]))
    return decisions


def test_the_published_threshold_is_absolute() -> None:
    skip = skipping(skip_norm=4.0)
    assert left_out(skip, [3.9, 4.0, 100.0, math.nan, math.inf, 1.0]) == [
        *(False, True, True, True, True, False)
    ]
    assert skip.skipped.item() == 4
    assert all(left_out(skip, [5.0] * 1000))  # for ever


def test_the_relative_threshold_leaves_out_spikes() -> None:
    skip = skipping(skip_relative=10.0)
    assert left_out(skip, [7.0, 5.0, 6.0, 80.0, 6.0, math.nan, 5.0]) == [
        *(False, False, False, True, False, True, False)
    ]
    assert skip.skipped.item() == 2


@pytest.mark.parametrize("level", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("relative", [1.5, 10.0])
def test_no_level_of_the_norm_freezes_training(level: float, relative: float) -> None:
    skip = skipping(skip_relative=relative)
    left_out(skip, [1.0] * 10)
    growth = math.log1p(0.01 * (relative - 1.0))
    enough = math.ceil(math.log(level) / growth) + 1
    decisions = left_out(skip, [level] * enough)
    assert decisions[0]
    assert not decisions[-1]
    assert not any(left_out(skip, [level] * 50))


def test_a_low_norm_brings_the_threshold_down_again() -> None:
    skip = skipping(skip_relative=10.0)
    left_out(skip, [100.0] * 10 + [1.0] * 1000)
    assert left_out(skip, [11.0]) == [True]


def test_both_thresholds_count() -> None:
    skip = skipping(skip_relative=10.0, skip_norm=5.0)
    assert left_out(skip, [1.0, 6.0, 4.0]) == [False, True, False]


def test_what_is_not_finite_fails_at_once_without_thresholds() -> None:
    nan = torch.tensor(math.nan)
    out, failed = skipping().decide(nan, nan.isfinite())
    assert (bool(out), bool(failed)) == (True, True)


def test_too_many_in_a_row_that_are_not_finite_have_failed() -> None:
    skip, nan = skipping(skip_norm=1.0), torch.tensor(math.nan)
    failed = [bool(skip.decide(nan, nan.isfinite())[1]) for _ in range(PATIENCE)]
    assert failed == [False] * (PATIENCE - 1) + [True]


def everything(state: State) -> list[Tensor]:
    assert state.average is not None
    moments = [v for s in state.optimizer.state.values() for v in s.values()]
    return [t.clone() for t in [*state.parameters, *state.average, *moments]]


def test_a_step_left_out_changes_nothing_but_the_count() -> None:
    config = resolve(TINY, ["train.skip_norm=1e4"])
    state = new_state(config, CPU)
    x = torch.rand(4, 6)
    train_step(state, x, config)
    before = everything(state)
    train_step(state, 1e8 * x, config)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(state), strict=True))
    assert (state.step, state.skipping.skipped.item(), state.failed.item()) == (2, 1, 0)
    train_step(state, torch.full_like(x, math.nan), config)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(state), strict=True))
    train_step(state, x, config)
    after = everything(state)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    counts = {int(s["step"].item()) for s in state.optimizer.state.values()}
    assert counts == {2}  # bias correction counts executed steps


def test_the_norm_is_that_before_clipping() -> None:
    config = resolve(TINY, ["train.skip_norm=2e-3", "train.grad_clip=1e-3"])
    state = new_state(config, CPU)
    train_step(state, torch.rand(4, 6), config)
    assert state.skipping.skipped.item() == 1
    assert state.meter.read()["train/grad_norm"] > 2e-3


def test_means_leave_out_what_is_not_finite() -> None:
    config = resolve(TINY, ["train.skip_norm=1e4"])
    state = new_state(config, CPU)
    x = torch.rand(4, 6)
    train_step(state, torch.full_like(x, math.nan), config)
    train_step(state, x, config)
    assert all(math.isfinite(value) for value in state.meter.read().values())


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the data of some steps be NaN."""
    whole = loop.batches

    def batches(setup: Any, step: int) -> Any:
        for k, x in enumerate(whole(setup, step), start=step):
            yield torch.full_like(x, math.nan) if k in steps else x

    monkeypatch.setattr(loop, "batches", batches)


RUN = ["train.skip_relative=10", "train.log_every=2", "train.steps=8", "train.batch_size=16"]


def test_a_run_counts_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, {3, 4})
    config = resolve("mnist_2layer", ["data=digits", *RUN])
    ladder.fit(config, tmp_path / "run", quiet=True)
    records = [r for r in read_metrics(tmp_path / "run") if "train/loss" in r]
    assert [r["train/skipped"] for r in records] == [0, 1, 2, 2]
    assert all(math.isfinite(r["train/loss"]) for r in records)


def spiked(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Let the data of some steps be larger."""
    whole = loop.batches

    def batches(setup: Any, step: int) -> Any:
        for k, x in enumerate(whole(setup, step), start=step):
            yield x * factors.get(k, 1.0)

    monkeypatch.setattr(loop, "batches", batches)


def test_resuming_knows_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step after the checkpoint is one that only the running mean can tell from others."""
    spiked(monkeypatch, {1: math.nan, 5: 200.0})
    words = ["data=digits", *RUN, "train.log_every=3"]
    ladder.fit(resolve("mnist_2layer", words), tmp_path / "whole", quiet=True)
    cut = resolve("mnist_2layer", [*words, "train.steps=5"])
    ladder.fit(cut, tmp_path / "run", quiet=True)
    ladder.fit(resolve("mnist_2layer", words), tmp_path / "run", resume=True, quiet=True)
    one, two = (ladder.from_pretrained(tmp_path / name) for name in ("whole", "run"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [
        {r["step"]: r for r in read_metrics(tmp_path / name) if "train/loss" in r}
        for name in ("whole", "run")
    ]
    assert lines[0][8]["train/skipped"] == lines[1][8]["train/skipped"] == 2
    for key in ("train/loss", "train/grad_norm", "data"):
        assert lines[0][8][key] == lines[1][8][key]


def test_windows_without_a_finite_step_have_no_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {2, 3})
    ladder.fit(resolve("mnist_2layer", ["data=digits", *RUN]), tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    records = [r for r in read_metrics(tmp_path / "run") if "train/skipped" in r]
    assert ["train/loss" in r for r in records] == [True, False, True, True]


def test_a_run_of_nothing_but_nan_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, set(range(2, 1000)))
    words = ["data=digits", *RUN, "train.steps=300", "train.checkpoint_every=2"]
    words += ["train.keep=1", "train.batch_size=4"]
    match = rf"step {PATIENCE + 2}: .* for {PATIENCE} steps in a row.*good checkpoint is step-0+2;"
    with pytest.raises(WorkFailed, match=match):
        ladder.fit(resolve("mnist_2layer", words), tmp_path / "run", quiet=True)


def test_a_run_that_learns_nothing_any_more_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data=digits", "train.skip_norm=1e-9", "train.steps=260", "train.batch_size=4"]
    ladder.fit(resolve("mnist_2layer", [*words, "train.log_every=50"]), tmp_path / "run")
    first, last = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert first.startswith(
        "step 100: the last 100 steps were all left out; raise train.skip_norm"
    )
    assert last.endswith("run: of 260 steps the last 260 were left out")
    assert read_metrics(tmp_path / "run")[-2]["train/skipped"] == 260


def test_the_published_warm_up_begins_at_zero() -> None:
    train = TrainConfig(steps=1, lr=2.0, warmup_steps=100, warmup_from_zero=True)
    assert [lr_at(train, i) for i in (0, 1, 50, 99)] == pytest.approx([0.0, 0.02, 1.0, 1.98])
    assert lr_at(train, 100) == lr_at(train, 5000) == 2.0
    assert lr_at(TrainConfig(steps=1, lr=2.0, warmup_from_zero=True), 0) == 2.0


def test_gradients_per_dimension_are_gradients_over_the_dimensions() -> None:
    norms = {}
    for per in ("datum", "dimension"):
        config = resolve(TINY, [f"objective.per={per}"])
        state = new_state(config, CPU)
        train_step(state, torch.ones(4, 6), config)
        means = state.meter.read()
        norms[per] = means.pop("train/grad_norm")
        losses = means["train/loss"]
        assert losses == pytest.approx(norms.setdefault("loss", losses))  # reported per datum
    assert norms["datum"] == pytest.approx(6 * norms["dimension"])


def test_the_layout_in_memory_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for wish in (True, False):
        config = resolve("tiny_vdvae", [f"train.channels_last={str(wish).lower()}"])
        state = new_state(config, CPU)
        kernels = [p for p in state.parameters if p.ndim == 4 and min(p.shape[1], p.shape[-1]) > 1]
        assert kernels
        for kernel in kernels:
            assert kernel.is_contiguous(memory_format=torch.channels_last) == wish
        train_step(state, torch.rand(16, 1, 8, 8, generator=torch.manual_seed(1)), config)
        found.append(state.meter.read())
        path = checkpoint.save(tmp_path / str(wish), state, keep=1)
        for other in ("true", "false"):  # a run can go on with the other layout
            words = [f"train.channels_last={other}"]
            again = new_state(resolve("tiny_vdvae", words), CPU)
            checkpoint.restore(path, again)
            for a, b in zip(everything(state), everything(again), strict=True):
                assert torch.equal(a, b)
            for p, values in again.optimizer.state.items():
                assert values["exp_avg"].stride() == p.stride()
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("words", [["train.skip_relative=10"], ["train.skip_norm=1e9"]])
def test_running_statistics_do_not_remember_a_step_that_is_left_out(words: list[str]) -> None:
    config = resolve("tiny_nvae", [*words, "train.ema=0.5"])
    state = new_state(config, CPU)
    buffers = dict(state.model.named_buffers())
    sound = torch.rand(8, 1, 8, 8)
    train_step(state, sound, config)
    before = {name: b.clone() for name, b in buffers.items()}
    average = [a.clone() for a in state.average or []]
    train_step(state, torch.full_like(sound, torch.nan), config)
    assert state.omitted.item() == 1
    assert all(torch.equal(b, before[name]) for name, b in buffers.items())
    assert all(torch.equal(a, b) for a, b in zip(average, state.average or [], strict=True))
    train_step(state, sound, config)
    assert state.omitted.item() == 0
    moved = [n for n, b in buffers.items() if not torch.equal(b, before[n])]
    assert len(moved) == sum("running" in n or "tracked" in n for n in buffers)
    assert all(b.isfinite().all() for b in [*buffers.values(), *(state.average or [])])
