"""Training of what is not the two-layer model: batch norm, averages, other merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ladder
from ladder.build import resolve
from ladder.errors import UserError
from ladder.train import loop
from ladder.train.state import choose_device, new_state
from ladder.train.step import train_step

LADDER: dict[str, Any] = {
    "model": {
        "system": "hierarchy",
        "shape": [1, 8, 8],
        "inference": "ladder",
        "merge": "concat",
        "layers": [{"dim": 3, "hidden": [8]}, {"dim": 2, "hidden": [8]}],
    },
    "data": "digits",
    "train": {"steps": 3, "batch_size": 64},
}


def test_resuming_refuses_a_merge_of_equal_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ladder.fit(resolve(LADDER), run, quiet=True)
    other = resolve(LADDER, ["model.merge=residual_normal", "train.steps=5"])
    with pytest.raises(UserError, match=r"another model: its merge is 'concat', not 'residual"):
        ladder.fit(other, run, resume=True, quiet=True)


def test_the_average_covers_running_statistics() -> None:
    words = ["train.steps=9", "train.ema=0.75", "data=digits"]
    config = resolve("lvae_mnist_3layer", words)
    state = new_state(config, torch.device("cpu"))
    assert state.average is not None
    kept = [name for name, _ in state.model.named_buffers() if "running_" in name]
    assert kept
    assert len(state.weights) == len(state.parameters) + len(kept)
    expected = [w.detach().clone() for w in state.weights]
    for _ in range(3):
        train_step(state, torch.rand(16, 1, 28, 28), config)
        for mean, weight in zip(expected, state.weights, strict=True):
            mean.lerp_(weight.detach(), 0.25)
    for mean, average in zip(expected, state.average, strict=True):
        torch.testing.assert_close(average, mean)


def test_a_last_batch_of_one_is_refused_with_batch_norm(tmp_path: Path) -> None:
    words = ["train.steps=2", "data=digits", "train.batch_size=44"]  # 1,497 = 34 * 44 + 1
    with pytest.raises(UserError, match="leaves one of 1497 data for the last batch"):
        ladder.fit(resolve("lvae_mnist_3layer", words), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    ladder.fit(resolve(LADDER, words), tmp_path / "dense", quiet=True)


@pytest.mark.parametrize(
    ("words", "estimator"),
    [
        (["model.inference=ladder"], "closed form"),
        (["model.inference=bidirectional", "model.merge=concat"], "closed form and sampled"),
        (["model.inference=bottom_up", "model.merge=null"], "sampled"),
        (["model.inference=bottom_up", "model.merge=null", "model.kl=closed_form"], "closed form"),
    ],
)
def test_an_evaluation_says_how_the_kl_was_estimated(words: list[str], estimator: str) -> None:
    model = ladder.build_model(config=resolve(LADDER, words))
    assert ladder.evaluate(model, torch.rand(8, 1, 8, 8)).estimator == estimator


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, number in [("auto", 0), ("cuda", 0), ("cuda:1", 1)]:
        assert choose_device(name) == torch.device("cuda", number) == chosen[-1]
    with pytest.raises(UserError, match="'cuda:2' is not there"):
        choose_device("cuda:2")


def test_a_file_that_breaks_on_the_way_keeps_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.batches

    def batches(setup: Any, step: int) -> Any:
        source = whole(setup, step)
        yield from (next(source) for _ in range(3))
        raise UserError("data: a.png cannot be read as an image; replace or remove it")

    monkeypatch.setattr(loop, "batches", batches)
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        ladder.fit(resolve(LADDER, ["train.steps=9"]), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "checkpoints" / "last").read_text() == "step-00000003"


def test_a_last_batch_of_one_is_refused_where_a_map_has_one_position(tmp_path: Path) -> None:
    words = ["train.steps=2", "train.batch_size=44"]
    config = resolve("tiny_nvae", [*words, "model.groups=[1,1,1]"])
    with pytest.raises(UserError, match="leaves one of 1497 data for the last batch"):
        ladder.fit(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    # With more positions than one, batch norm has something to go by.
    ladder.fit(resolve("tiny_nvae", words), tmp_path / "run", quiet=True)
