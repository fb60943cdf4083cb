"""The learning rate by step: against torch's schedulers, stepped as published."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ladder.build import resolve
from ladder.config import Config, CosineDecay, ExponentialDecay, TrainConfig
from ladder.errors import UserError
from ladder.pretrained import read_weights
from ladder.train import fit
from ladder.train.run import read_metrics
from ladder.train.state import new_state
from ladder.train.step import lr_at, train_step

CPU = torch.device("cpu")


def train(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "lr": 1e-2, **fields})


def cosine(every: int = 1, end: float = 1e-4) -> CosineDecay:
    return CosineDecay(kind="cosine", end=end, every=every)


def published(epochs: int, warm_up: int, per_epoch: int, lr: float, end: float) -> list[float]:
    """Rates of all steps where torch's scheduler takes over after the warm-up, epoch by epoch.

    In the warm-up the rate is set before each step, and what it was last holds for one more epoch.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=epochs - warm_up - 1, eta_min=end
    )
    rates, steps = [], 0
    for epoch in range(epochs):
        if epoch > warm_up:
            scheduler.step()
        for _ in range(per_epoch):
            if steps < warm_up * per_epoch:
                optimizer.param_groups[0]["lr"] = lr * steps / (warm_up * per_epoch)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            steps += 1
    return rates


@pytest.mark.parametrize(
    ("epochs", "warm_up", "per_epoch", "lr"),
    [(40, 5, 7, 1e-2), (12, 1, 20, 8e-3), (9, 3, 1, 1e-2), (6, 4, 3, 0.5)],
)
def test_it_is_the_published_schedule(
    epochs: int, warm_up: int, per_epoch: int, lr: float
) -> None:
    end, steps = 1e-4, warm_up * per_epoch
    decay = cosine(per_epoch, end)
    section = train(lr=lr, warmup_steps=steps, warmup_from_zero=True, lr_decay=decay)
    rates = [lr_at(section, s, epochs * per_epoch) for s in range(epochs * per_epoch)]
    expected = published(epochs, warm_up, per_epoch, lr, end)
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)
    held = rates[steps : steps + per_epoch]
    assert held == pytest.approx([lr * (steps - 1) / steps] * per_epoch)
    assert rates[-1] == pytest.approx(end)


@pytest.mark.parametrize("warm_up", [0, 10])
@pytest.mark.parametrize("from_zero", [False, True])
def test_by_step_it_ends_with_the_last_step(warm_up: int, from_zero: bool) -> None:
    decay = cosine(end=1e-3)
    section = train(warmup_steps=warm_up, warmup_from_zero=from_zero, lr_decay=decay)
    rates = [lr_at(section, s, 60) for s in range(62)]
    assert rates[59:] == pytest.approx([1e-3] * 3)  # and stays there
    assert all(a > b for a, b in zip(rates[warm_up:59], rates[warm_up + 1 : 60], strict=True))
    peak = 1e-2 if warm_up == 0 else rates[warm_up - 1]
    assert rates[warm_up] == pytest.approx(peak)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 59 - warm_up, 1e-3)
    for rate in rates[warm_up:60]:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_the_warm_up_is_what_it_is_without_a_decay() -> None:
    for from_zero in (False, True):
        fields = {"warmup_steps": 8, "warmup_from_zero": from_zero}
        flat, falling = train(**fields), train(**fields, lr_decay=cosine())
        for step in range(8):
            assert lr_at(falling, step, 100) == lr_at(flat, step) == lr_at(flat, step, 100)


def test_without_a_decay_rates_are_the_old_ones() -> None:
    section = train(warmup_steps=4)
    risen = [1e-2 * (step + 1) / 5 for step in range(4)]
    assert [lr_at(section, s) for s in range(4)] == risen
    assert {lr_at(section, s, total) for s in (4, 5, 10**6) for total in (None, 7)} == {1e-2}
    assert {lr_at(train(), s) for s in (0, 1, 10**6)} == {1e-2}


def test_a_last_epoch_that_is_not_whole_has_the_last_rate() -> None:
    section = train(lr_decay=cosine(every=10), warmup_steps=20, warmup_from_zero=True)
    rates = [lr_at(section, s, 57) for s in range(57)]
    assert rates[50:] == pytest.approx([1e-4] * 7)
    whole = [lr_at(section, s, 60) for s in range(60)]
    assert rates == whole[:57]
    assert len({*rates[20:]}) == 4


def test_a_warm_up_as_long_as_training_leaves_nothing_to_decay() -> None:
    section = train(lr_decay=cosine(), warmup_steps=12, warmup_from_zero=True)
    assert [lr_at(section, s, 12) for s in range(12)] == [1e-2 * s / 12 for s in range(12)]
    longer = train(lr_decay=cosine(), warmup_steps=100)
    assert [lr_at(longer, s, 12) for s in range(12)] == [1e-2 * (s + 1) / 101 for s in range(12)]
    # What is left is one stair, which has no way to go.
    stair = train(lr_decay=cosine(every=50), warmup_steps=2)
    assert {lr_at(stair, s, 40) for s in range(2, 40)} == {lr_at(stair, 1)}


def exponential(rate: float, least: float = 0.0) -> ExponentialDecay:
    return ExponentialDecay(kind="exponential", rate=rate, least=least)


@pytest.mark.parametrize("total", [None, 7, 10**7])
def test_the_exponential_one_is_bivas(total: int | None) -> None:
    section = train(lr=2e-3, lr_decay=exponential(0.999999, 1e-4))
    rate, multiplied = 2e-3, []
    for _ in range(1000):  # as their scheduler does: times 0.999999 after each step
        multiplied.append(rate)
        rate *= 0.999999
    rates = [lr_at(section, s, total) for s in range(1000)]
    assert rates == pytest.approx(multiplied, rel=1e-12)
    assert rates[0] == 2e-3
    floor = math.ceil(math.log(1e-4 / 2e-3) / math.log(0.999999))  # 2,995,731 steps
    assert lr_at(section, floor - 1, total) == pytest.approx(1e-4 / 0.999999, rel=1e-6)
    assert lr_at(section, floor - 1, total) > 1e-4
    assert {lr_at(section, s, total) for s in (floor, floor + 1, 10**9)} == {1e-4}


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("warm_up", [0, 1, 8])
def test_the_exponential_one_begins_at_the_rate(warm_up: int, from_zero: bool) -> None:
    fields = {"warmup_steps": warm_up, "warmup_from_zero": from_zero}
    flat, falling = train(**fields), train(**fields, lr_decay=exponential(0.9, 2e-3))
    assert [lr_at(falling, s) for s in range(warm_up)] == [lr_at(flat, s) for s in range(warm_up)]
    assert lr_at(falling, warm_up) == lr_at(flat, warm_up) == 1e-2
    closed = [1e-2 * math.exp(n * math.log(0.9)) for n in range(16)]  # 0.9^15 > 0.2 > 0.9^16
    rates = [lr_at(falling, warm_up + n) for n in range(30)]
    assert rates == pytest.approx([*closed, *[2e-3] * 14], rel=1e-12)
    assert lr_at(train(**fields, lr_decay=exponential(0.5)), 10**6) == 0.0
    assert lr_at(train(**fields, lr_decay=exponential(1.0)), 10**6) == 1e-2


# --- in the loop --------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "model": {"system": "hierarchy", "shape": [1, 8, 8], "layers": [{"dim": 2, "hidden": [8]}]},
    "data": "digits",
    "train": {"epochs": 3, "batch_size": 500, "log_every": 1, "lr": 0.1, "device": "cpu"},
}
DECAY = {"kind": "cosine", "end": 0.01}


def tiny(**fields: Any) -> Config:
    return resolve({**TINY, "train": {**TINY["train"], **fields}})


@pytest.mark.parametrize("fields", [{}, {"epochs": None, "steps": 9}])
def test_a_run_follows_it_and_writes_it_down(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = tiny(lr_decay=DECAY, warmup_steps=3, **fields)
    fit(config, tmp_path / "run", quiet=True)
    written = [r["train/lr"] for r in read_metrics(tmp_path / "run") if "train/lr" in r]
    assert written == [lr_at(config.train, step, 9) for step in range(9)]
    assert written[-1] == pytest.approx(0.01)
    last = torch.load(tmp_path / "run/checkpoints/step-00000009/state.pt")
    assert last["optimizer"]["param_groups"][0]["lr"] == written[-1]


def test_the_optimiser_has_the_rate_of_its_step() -> None:
    config = tiny(lr_decay=DECAY, epochs=None, steps=5)
    for total, right in ((None, 5), (11, 11)):
        state = new_state(config, CPU, total=total)
        assert state.total == right
        for step in range(5):
            train_step(state, torch.rand(4, 1, 8, 8), config)
            rate = state.optimizer.param_groups[0]["lr"]
            assert rate == lr_at(config.train, step, right)


def test_the_exponential_one_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    decay = {"kind": "exponential", "rate": 0.7, "least": 0.02}
    section = {"epochs": None, "lr_decay": decay, "warmup_steps": 2}
    adamax = {"optimizer": "adamax", "bias_correction": False}
    for steps, out, resume in ((9, "whole", False), (4, "parts", False), (9, "parts", True)):
        config = tiny(**section, **adamax, steps=steps)
        fit(config, tmp_path / out, resume=resume, quiet=True)
    rows = [read_metrics(tmp_path / out) for out in ("whole", "parts")]
    written = [[r["train/lr"] for r in row if "train/lr" in r] for row in rows]
    closed = [max(0.1 * 0.7**n, 0.02) for n in range(7)]
    assert written[0] == written[1] == pytest.approx([0.1 / 3, 0.2 / 3, *closed])
    assert written[0][-1] == 0.02
    folders = [tmp_path / out / "checkpoints/step-00000009" for out in ("whole", "parts")]
    one, two = (read_weights(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("decay", "sentence"),
    [
        ({"kind": "cosin"}, "train.lr_decay.kind: unknown value 'cosin'; did you mean 'cosine'?"),
        ({"every": 1}, "train.lr_decay: needs a field 'kind' that says which"),
        ({"kind": "cosine", "end": -1.0}, "train.lr_decay.end: should be greater than or equal"),
        ({"kind": "cosine", "every": 0}, "train.lr_decay.every: should be greater than or equal"),
        ({"kind": "cosine", "evry": 3}, "train.lr_decay: no field 'evry'; did you mean 'every'?"),
        ({"kind": "exponential"}, "train.lr_decay.rate: missing"),
        ({"kind": "exponential", "rate": 0}, "train.lr_decay.rate: should be greater than 0"),
        ({"kind": "exponential", "rate": 1.1}, "train.lr_decay.rate: should be less than or"),
        ({"kind": "exponential", "rate": 0.9, "end": 0.1}, "train.lr_decay: no field 'end'"),
        (
            {"kind": "exponential", "rate": 0.9, "least": 0.2},
            "train: 'lr_decay.least' is 0.2, which should be at most 'lr', 0.1",
        ),
    ],
)
def test_mistakes_have_one_sentence(decay: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        tiny(lr_decay=decay)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_warm_up_that_never_leaves_zero_is_refused() -> None:
    words = ["train.warmup_steps=1", "train.warmup_from_zero=true"]
    with pytest.raises(UserError, match="the last rate of the warm-up, which is 0"):
        resolve("tiny_nvae", words)


def test_only_a_cosine_wants_to_know_where_it_ends() -> None:
    config = resolve("tiny_nvae", ["train.epochs=1"])
    with pytest.raises(UserError, match="new_state needs 'total'"):
        new_state(config, torch.device("cpu"))
    assert new_state(config, torch.device("cpu"), total=7).total == 7
    endless = tiny(lr_decay={"kind": "exponential", "rate": 0.5})
    state = new_state(endless, CPU)
    assert state.total is None
    for rate in (0.1, 0.05, 0.025):
        train_step(state, torch.rand(4, 1, 8, 8), endless)
        assert state.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_rate_does_not_decay_upwards() -> None:
    with pytest.raises(UserError, match=r"'lr_decay.end' is 1.0, which should be at most 'lr'"):
        resolve("tiny_nvae", ["train.lr_decay.end=1.0"])
