"""Models that train together learn what each would have learned alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ladder.ablate import ablate
from ladder.ablate.command import jobs_word
from ladder.build import resolve
from ladder.config import Config
from ladder.errors import UserError
from ladder.train import many
from ladder.train.course import Course
from ladder.train.feed import batches
from ladder.train.loop import started
from ladder.train.many import Job, fit_together
from ladder.train.step import train_step
from ladder.train.stop import Stopped
from ladder.train.together import Together, kind_of, obstacle

# With a large epsilon, or Adam makes much of the rounding in gradients that are almost 0.
BASE = ["data=digits", "train.device=cpu", "train.batch_size=500", "train.steps=5"]
BASE += ["train.eps=1e-2"]
EVERYTHING = [
    "train.ema=0.9",
    "train.grad_clip=50",
    "train.skip_relative=10",
    "objective.layers.z1.kl_target=4",
    "objective.balance={by: scale, steps: 2}",
    "objective.free_bits={nats: 0.5, per: layer}",
    "data.binarize=dynamic",
]
# What differs between the models of a kind.
CELLS = [
    ["train.seed=0"],
    ["train.seed=1", "objective.beta=0.5"],
    ["train.seed=1", "train.lr=3e-3", "objective.kl_annealing={kind: linear, steps: 9}"],
]
KINDS: dict[str, tuple[str, list[str]]] = {
    "bottom_up": ("mnist_2layer", EVERYTHING),
    "bidirectional": ("mnist_2layer", ["model.inference=bidirectional", "train.optimizer=adamax"]),
    "ladder": ("mnist_2layer", ["model.inference=ladder", "objective.per=dimension"]),
    "batch norm": ("lvae_mnist_3layer", ["train.skip_norm=1e9"]),
    # In the second cell all layers have one beta, in the others each its own.
    "betas": ("mnist_2layer", ["objective.layers.z1.beta=0.5"]),
}


def config_of(name: str, *words: str) -> Config[Any]:
    preset, own = KINDS[name]
    return resolve(preset, [*BASE, *own, *words])


def begun(config: Config[Any], out: Path) -> Course:
    return started(config, out, quiet=True)


@pytest.mark.parametrize("name", KINDS)
def test_together_is_as_alone(name: str, tmp_path: Path) -> None:
    """Weights, averages, buffers and metrics, to rounding; the last batch is smaller."""
    configs = [config_of(name, *cell) for cell in CELLS]
    alone = [begun(config, tmp_path / f"alone{k}") for k, config in enumerate(configs)]
    joint = [begun(config, tmp_path / f"joint{k}") for k, config in enumerate(configs)]
    assert len({kind_of(config) for config in configs}) == 1
    advance = Together(joint)
    sources = [batches(course.setup, 0) for course in alone]
    # Batch norm makes much of rounding, so there one step has to do.
    for _ in range(1 if name == "batch norm" else 4):
        advance()
        for course, source in zip(alone, sources, strict=True):
            train_step(course.state, next(source), course.setup.config)
    for a, b in zip(alone, joint, strict=True):
        torch.testing.assert_close(a.state.weights, b.state.weights, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a.state.average, b.state.average, rtol=1e-3, atol=1e-5)
        assert a.state.meter.read() == pytest.approx(b.state.meter.read(), rel=1e-3)
        assert (a.state.step, a.state.meter.data) == (b.state.step, b.state.meter.data)
    first, other = (course.state.parameters[0] for course in joint[:2])
    assert (first - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("word", "alike"),
    [
        ("train.seed=3", True),
        ("train.lr=1e-2", True),
        ("objective.beta=0.1", True),
        ("train.epochs=2", True),
        ("model.inference=ladder", False),
        ("train.batch_size=64", False),
        ("train.precision=bfloat16", False),
        ("objective.free_bits={nats: 1}", False),
        ("data.binarize=static", False),
    ],
)
def test_what_may_differ(word: str, alike: bool) -> None:
    plain = resolve("mnist_2layer", BASE)
    assert (kind_of(plain) == kind_of(resolve("mnist_2layer", [*BASE, word]))) is alike


@pytest.mark.parametrize(
    ("preset", "words", "reason"),
    [
        ("mnist_2layer", [], None),
        ("lvae_mnist", [], None),
        ("tiny_vdvae", [], "it has convolutions"),
        (
            "mnist_2layer",
            ["train.accumulate=2"],
            "its batches are taken in parts, or its layers twice",
        ),
        (
            "mnist_2layer",
            ["train.recompute=true"],
            "its batches are taken in parts, or its layers twice",
        ),
        ("mnist_2layer", ["train.compile=layers"], "it is compiled"),
        ("mnist_2layer", ["model.layers=[{dim: 4000, hidden: [4000]}]"], "it is large"),
    ],
)
def test_who_cannot(preset: str, words: list[str], reason: str | None) -> None:
    assert obstacle(resolve(preset, words)) == reason


# --- `ladder ablate --jobs together` -------------------------------------------------------------

BASE_FILE = {
    "preset": "mnist_2layer",
    "data": {"name": "digits"},
    "train": {"steps": 4, "batch_size": 500, "device": "cpu", "eps": 1e-2, "log_every": 2},
}


def test_an_ablation_together_makes_the_same_table(tmp_path: Path) -> None:
    """Two kinds, one of them of a single cell; and a cell that fails stops none of its kind."""
    vary = {"train.lr": [1e-3, 1e30], "train.seed": [0, 1]}
    ours = ablate(BASE_FILE, tmp_path / "ours", vary=vary, jobs="together", samples=2, n=20)
    theirs = ablate(BASE_FILE, tmp_path / "theirs", vary=vary, samples=2, n=20)
    assert set(ours.results) == set(theirs.results) == {"lr=0.001,seed=0", "lr=0.001,seed=1"}
    assert set(ours.failed) == set(theirs.failed)
    assert all("is not finite" in reason for reason in ours.failed.values())
    for name, result in ours.results.items():
        for key, number in result.numbers.items():
            if key != "seconds":
                assert number == pytest.approx(theirs.results[name].numbers[key], rel=1e-4), key


def test_stopped_together_they_go_on_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint of each; the end is that of cells that were never stopped."""
    configs = [resolve({**BASE_FILE, "train": {**BASE_FILE["train"], "seed": k}}) for k in (0, 1)]

    def jobs(folder: str, resume: bool = False) -> list[Job]:
        return [
            Job(config, tmp_path / f"{folder}{k}", "", resume) for k, config in enumerate(configs)
        ]

    assert fit_together(jobs("whole"), quiet=True) == {}
    with pytest.raises(Stopped) as stopped:
        fit_together(jobs("run"), minutes=1e-9, quiet=True)
    assert stopped.value.exit_code == 75
    built: list[int] = []
    monkeypatch.setattr(many, "Together", lambda c: built.append(len(c)) or Together(c))
    assert fit_together(jobs("run", resume=True), quiet=True) == {}
    assert built == [2]
    for k in (0, 1):
        whole, run = (
            (tmp_path / f"{name}{k}/checkpoints/step-00000004/model.safetensors").read_bytes()
            for name in ("whole", "run")
        )
        assert whole == run


def test_what_cannot_be_done_together_is_done_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(courses: Any) -> None:
        raise TypeError("vmap: a system of the user's own\nand where")

    monkeypatch.setattr(many, "Together", broken)
    table = ablate(BASE_FILE, tmp_path / "out", vary={"train.seed": [0, 1]}, jobs="together")
    assert len(table.results) == 2
    assert not table.failed
    told = "2 cells could not train together (TypeError: vmap: a system of the user's own); each"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("word", ["some", "1.5", "-1"])
def test_a_wrong_number_of_jobs_is_a_sentence(word: str) -> None:
    with pytest.raises(UserError, match="should be a number, or together"):
        jobs_word(word)
