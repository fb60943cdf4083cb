"""How a GPU may round what it multiplies: the settings are there without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder.bench.case import Case
from ladder.bench.trainee import set_products
from ladder.build import resolve
from ladder.train import evaluate as evaluating
from ladder.train import health
from ladder.train.device import allow_tf32, products, tf32_settings
from ladder.train.feed import batches, set_up
from ladder.train.state import new_state

GPU = torch.device("cuda")
MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn
newer = pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="needs torch 2.9")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with products("float32", GPU):
        yield


def older_ones() -> None:
    MATMUL.allow_tf32, CUDNN.allow_tf32 = True, False


def a_newer_one_of_products() -> None:
    MATMUL.fp32_precision = "tf32"


def a_newer_one_of_convolutions() -> None:
    allow_tf32(True)
    CUDNN.conv.fp32_precision = "ieee"


def torch_s_own() -> None:
    MATMUL.allow_tf32, CUDNN.allow_tf32 = False, True


@pytest.mark.parametrize(
    "user",
    [
        torch_s_own,
        older_ones,
        pytest.param(a_newer_one_of_products, marks=newer),
        pytest.param(a_newer_one_of_convolutions, marks=newer),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_whatever_the_user_set_is_there_afterwards(user: Any, precision: str) -> None:
    user()
    before, tf32 = tf32_settings(), precision == "tf32"
    assert tf32_settings() == before  # looking changes nothing
    with products(precision, GPU):
        assert_everywhere(tf32)
    assert tf32_settings() == before
    with pytest.raises(KeyError), products(precision, GPU):
        raise KeyError
    assert tf32_settings() == before
    set_products(Case("tiny_vdvae", [], 1, precision=precision))
    assert_everywhere(tf32)


def assert_everywhere(tf32: bool) -> None:
    assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (tf32, tf32)
    if hasattr(MATMUL, "fp32_precision"):
        wanted = "tf32" if tf32 else "ieee"
        assert (MATMUL.fp32_precision, CUDNN.conv.fp32_precision) == (wanted, wanted)


def test_held_out_data_are_measured_in_float32_and_a_failed_step_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[str] = []

    @contextmanager
    def noted(precision: str, device: torch.device) -> Iterator[None]:
        inside.append(precision)
        yield
        inside.pop()

    def looked(*_: Any) -> Any:
        raise KeyError(*inside)

    for module in (evaluating, health):
        monkeypatch.setattr(module, "products", noted)
    monkeypatch.setattr(evaluating, "_measure", looked)
    monkeypatch.setattr(health, "_of_shard", looked)
    config = resolve("mnist_2layer", ["data=digits", "train.device=cpu", "train.steps=1"])
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    with pytest.raises(KeyError, match="float32"):
        evaluating.evaluate(state.model, setup.held_out)
    inside.clear()
    low = config.model_copy(
        update={"train": config.train.model_copy(update={"precision": "tf32"})}
    )
    with pytest.raises(KeyError, match="tf32"):
        health.first_offender(state, next(batches(setup, 0)), 0, low)
