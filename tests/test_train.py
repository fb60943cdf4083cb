from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ladder.build import resolve
from ladder.config import Config
from ladder.data import load, permutation
from ladder.errors import UserError, WorkFailed
from ladder.pretrained import from_pretrained, pointed, read_weights
from ladder.train import fit, loop
from ladder.train.checkpoint import restore
from ladder.train.evaluate import added, evaluate, evaluate_part
from ladder.train.loop import batches, set_up
from ladder.train.meter import Meter
from ladder.train.run import UNITS, read_metrics
from ladder.train.state import new_state
from ladder.train.step import lr_at, train_step
from ladder.train.stop import Stopped

TINY = {
    "model": {
        "system": "hierarchy",
        "shape": [1, 8, 8],
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 2, "hidden": [8]}],
    },
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 40, "batch_size": 100, "log_every": 7, "checkpoint_every": 10},
}


def tiny(*words: str) -> Config:
    return resolve(TINY, ["train.device=cpu", *words])


def weights(run: Path) -> dict[str, Tensor]:
    last = pointed(run / "checkpoints", "last")
    assert last is not None
    return read_weights(last / "model.safetensors")


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def without_time(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if "per_s" not in k} for r in read_metrics(run)]


# A run that kills itself, really, at a given step or in the middle of writing a checkpoint.
SUICIDE = """
import json, os, signal, sys
from pathlib import Path
from ladder.build import resolve
from ladder.train import checkpoint, fit, loop

config, out, step, place, resume = json.loads(sys.argv[1])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
train_step, write_atomic = loop.train_step, checkpoint.write_atomic

def step_or_die(state, x, config, of):
    if place == "step" and state.step == step:
        die()
    train_step(state, x, config, of)

def write_or_die(path, content):
    if place == "checkpoint" and f"step-{step:08d}" in str(path) and path.name == "state.pt":
        path.write_bytes(content[: len(content) // 2])
        die()
    write_atomic(path, content)

loop.train_step, checkpoint.write_atomic = step_or_die, write_or_die
fit(resolve(config, ["train.device=cpu"]), Path(out), resume=resume, quiet=True)
"""


def run_until_killed(out: Path, step: int, place: str, resume: bool, config: dict) -> None:
    arguments = json.dumps([config, str(out), step, place, resume])
    result = subprocess.run([sys.executable, "-c", SUICIDE, arguments], capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()


@pytest.mark.parametrize("ema", [0.9, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_and_resumed_ends_bit_for_bit_as_if_left_alone(
    tmp_path: Path, ema: float | None
) -> None:
    more = {"ema": ema, "grad_clip": 50.0, "warmup_steps": 5, "evaluate_every": 9}
    raw = {**TINY, "train": {**TINY["train"], **more}}
    config = resolve(raw, ["train.device=cpu"])
    fit(config, tmp_path / "whole", quiet=True)
    killed = tmp_path / "killed"
    run_until_killed(killed, 4, "step", False, raw)  # before the first checkpoint
    run_until_killed(killed, 17, "step", True, raw)
    run_until_killed(killed, 20, "checkpoint", True, raw)
    run_until_killed(killed, 33, "step", True, raw)
    fit(config, killed, resume=True, quiet=True)
    assert_same(weights(killed), weights(tmp_path / "whole"))
    assert without_time(killed) == without_time(tmp_path / "whole")
    assert (killed / UNITS).read_bytes() == (tmp_path / "whole" / UNITS).read_bytes()
    ends = [
        torch.load(p / "checkpoints/step-00000040/state.pt") for p in (killed, tmp_path / "whole")
    ]
    moments = [list(e["optimizer"]["state"].values()) for e in ends]
    for a, b in zip(*moments, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_evaluating_and_checkpointing_more_often_changes_nothing(tmp_path: Path) -> None:
    fit(tiny(), tmp_path / "a", quiet=True)
    fit(tiny("train.checkpoint_every=3", "train.evaluate_every=2", "train.log_every=1"),
        tmp_path / "b", quiet=True)  # fmt: skip
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_loop_is_torch_adam_on_the_elbo(tmp_path: Path) -> None:
    """Ten steps of ours equal ten steps written out with the plain optimiser."""
    config = tiny("data.binarize=none")
    setup = set_up(config, tmp_path)
    ours, theirs = new_state(config, setup.device), new_state(config, setup.device)
    plain = torch.optim.Adam(theirs.model.parameters(), lr=1e-3, fused=False, foreach=False)
    from ladder.noise import reseed
    from ladder.objectives import elbo

    for step, x in zip(range(10), batches(setup, 0), strict=False):
        train_step(ours, x, config)
        reseed(config.train.seed, step)
        plain.zero_grad()
        px, latents = theirs.model(x)
        elbo(px, latents, x).loss.backward()
        plain.step()
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_average_follows_its_formula(tmp_path: Path) -> None:
    config = tiny("train.ema=0.8")
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    assert state.average is not None
    expected = [p.detach().clone() for p in state.parameters]
    for _, x in zip(range(5), batches(setup, 0), strict=False):
        train_step(state, x, config)
        expected = [
            0.8 * e + 0.2 * p.detach() for e, p in zip(expected, state.parameters, strict=True)
        ]
    for mean, value in zip(state.average, expected, strict=True):
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)


def test_an_epoch_shows_every_datum_once(tmp_path: Path) -> None:
    setup = set_up(tiny("data.binarize=none"), tmp_path)
    seen = [x for _, x in zip(range(setup.steps_per_epoch), batches(setup, 0), strict=False)]
    order = permutation(len(setup.images), 0, 0)
    assert torch.equal(torch.cat(seen), setup.images[order].float() / 255)
    late = next(batches(setup, setup.steps_per_epoch + 3))
    expected = permutation(len(setup.images), 0, 1)[300:400]
    assert torch.equal(late, setup.images[expected].float() / 255)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    config = tiny("train.grad_clip=0.01")
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    train_step(state, next(batches(setup, 0)), config)
    norm = torch.stack([p.grad.norm() for p in state.parameters if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert state.meter.read()["train/grad_norm"] > 0.01


def test_warm_up_rises_to_the_learning_rate() -> None:
    train = tiny("train.warmup_steps=4", "train.lr=1.0").train
    assert [lr_at(train, s) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_the_meter_weighs_by_data() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add({"a": torch.tensor(1.0)}, 3)
    meter.add({"a": torch.tensor(5.0)}, 1)
    assert meter.read() == {"a": 2.0}


def poison(value: float, step: int, name: str) -> Callable[..., None]:
    """A step that spoils one weight just before the given step."""

    def poisoned(state: Any, x: Tensor, config: Any, of: int) -> None:
        if state.step == step:
            with torch.no_grad():
                dict(state.model.named_parameters())[name].view(-1)[0] = value
        train_step(state, x, config, of)

    return poisoned


def test_not_finite_names_the_weight_and_keeps_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "bottom_up.rungs.z2.posterior.net.weight"
    monkeypatch.setattr(loop, "train_step", poison(float("nan"), 13, name))
    with pytest.raises(
        WorkFailed, match=rf"step 14: .*layer z2, module {re.escape(name)}.*00000010"
    ):
        fit(tiny(), tmp_path / "run", quiet=True)
    good = pointed(tmp_path / "run/checkpoints", "last")
    assert good is not None
    assert good.name == "step-00000010"
    assert all(p.isfinite().all() for p in read_weights(good / "model.safetensors").values())
    assert [p.name for p in (tmp_path / "run/checkpoints").glob("step*")] == ["step-00000010"]


@pytest.mark.parametrize(
    ("part", "named"),
    [
        # finite weights, an output that overflows
        ("bottom_up.rungs.z1.net.0.weight", r"layer z1, module bottom_up\.rungs\.z1\.net\.0"),
        # a finite output, a posterior scale that overflows
        ("bottom_up.rungs.z2.posterior.net.bias", r"z2"),
        ("likelihood.0.weight", r"module likelihood\.0"),
    ],
)
def test_not_finite_names_the_first_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, named: str
) -> None:
    def huge(state: Any, x: Tensor, config: Any, of: int) -> None:
        if state.step == 5:
            with torch.no_grad():
                dict(state.model.named_parameters())[part].fill_(3e38)
        train_step(state, x, config, of)

    monkeypatch.setattr(loop, "train_step", huge)
    with pytest.raises(WorkFailed, match=f"step 6: .*first to go was .*{named}"):
        fit(tiny(), tmp_path / "run", quiet=True)


def test_after_a_failed_step_nothing_changes_any_more(tmp_path: Path) -> None:
    config = tiny("train.ema=0.9", "data.binarize=none")
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    source = batches(setup, 0)
    train_step(state, next(source), config)
    before = [p.detach().clone() for p in state.parameters]
    train_step(state, torch.full((100, 1, 8, 8), float("nan")), config)
    train_step(state, next(source), config)
    assert state.failed.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state.parameters, strict=True))
    assert state.average is not None
    assert all(mean.isfinite().all() for mean in state.average)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_write_a_checkpoint_and_resuming_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def interrupted(state: Any, x: Tensor, config: Any, of: int) -> None:
        train_step(state, x, config, of)
        if state.step == 23:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        with pytest.raises(Stopped) as stopped:
            fit(tiny(), tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) == handler
    assert (tmp_path / "run/checkpoints/last").read_text() == "step-00000023"
    fit(tiny(), tmp_path / "run", resume=True, quiet=True)
    fit(tiny(), tmp_path / "whole", quiet=True)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_time_limit_stops_with_75(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped:
        fit(tiny("train.time_limit=1e-9"), tmp_path / "run", quiet=True)
    assert stopped.value.exit_code == 75
    assert (tmp_path / "run/checkpoints/last").read_text() == "step-00000001"


DISK_FULL = """
import json, resource, signal, sys
from pathlib import Path
from ladder.build import resolve
from ladder.train import fit, loop

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config, out = json.loads(sys.argv[1])
train_step = loop.train_step
def fill_up(state, x, config, of):
    if state.step == 15:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    train_step(state, x, config, of)
loop.train_step = fill_up
fit(resolve(config, ["train.device=cpu", "train.log_every=1000"]), Path(out), quiet=True)
"""


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = json.dumps([TINY, str(out)])
    result = subprocess.run(
        [sys.executable, "-c", DISK_FULL, arguments], capture_output=True, text=True
    )
    assert "WorkFailed" in result.stderr
    assert "step-00000020: the checkpoint cannot be written" in result.stderr
    assert "step-00000010, the previous one, is whole" in result.stderr
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["last", "step-00000010"]
    fit(tiny(), out, resume=True, quiet=True)
    fit(tiny(), tmp_path / "whole", quiet=True)
    assert_same(weights(out), weights(tmp_path / "whole"))


def test_old_checkpoints_go_and_best_stays(tmp_path: Path) -> None:
    words = ("train.keep=2", "train.checkpoint_every=5", "data.validation=100", "train.lr=0.01")
    fit(tiny(*words, "train.evaluate_every=4", "train.steps=60"), tmp_path / "run", quiet=True)
    folder = tmp_path / "run/checkpoints"
    best, last = pointed(folder, "best"), pointed(folder, "last")
    assert best is not None
    assert last == folder / "step-00000060"
    records = [r for r in read_metrics(tmp_path / "run") if "val/elbo" in r]
    assert {r["val/split"] for r in records} == {"validation"}
    assert best.name == f"step-{max(records, key=lambda r: r['val/elbo'])['step']:08d}"
    assert best.is_dir()
    assert len(list(folder.glob("step-*"))) <= 3


def test_the_test_split_chooses_nothing(tmp_path: Path) -> None:
    fit(tiny(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run/checkpoints/best").exists()


def test_the_run_directory_holds_what_it_should(tmp_path: Path) -> None:
    config = tiny("train.evaluate_every=15")
    fit(config, tmp_path / "run", given="preset: x\n", quiet=True)
    run = tmp_path / "run"
    assert (run / "config.yaml").read_text() == "preset: x\n"
    assert resolve(run / "config.resolved.yaml") == config
    environment = json.loads((run / "environment.json").read_text())
    assert {"python", "torch", "device", "git_commit", "argv", "seed"} <= environment.keys()
    assert os.uname().nodename not in (run / "environment.json").read_text()
    records = read_metrics(run)
    windows = [r for r in records if "train/loss" in r]
    assert sum(r["data"] for r in windows) == 2 * 1497 + 10 * 100
    assert [r["step"] for r in records if "val/elbo" in r] == [15, 30, 40]
    assert not [p for p in run.rglob("*") if "tmp" in p.name]
    state = torch.load(run / "checkpoints/step-00000040/state.pt", weights_only=True)
    assert state["step"] == 40


def test_a_run_and_its_checkpoint_are_pretrained_models(tmp_path: Path) -> None:
    fit(tiny("train.ema=0.9"), tmp_path / "run", quiet=True)
    model = from_pretrained(tmp_path / "run")
    assert not model.training
    assert_same(dict(model.state_dict()), weights(tmp_path / "run"))
    images = set_up(tiny(), tmp_path).held_out
    elbo = read_metrics(tmp_path / "run")[-1]["val/elbo"]
    assert evaluate(model, images, 100).elbo == pytest.approx(elbo, rel=1e-6)


def test_evaluating_touches_neither_generator_nor_mode(tmp_path: Path) -> None:
    setup = set_up(tiny(), tmp_path)
    model = new_state(tiny(), setup.device).model
    before = torch.get_rng_state()
    first = evaluate(model, setup.held_out, 100, samples=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert evaluate(model, setup.held_out, 100, samples=3) == first
    assert first.iw is not None
    assert first.iw > first.elbo


def test_parts_of_an_evaluation_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without noise, of which each part has its own: bounds, KLs and units are those of all."""
    setup = set_up(tiny(), tmp_path)
    model = new_state(tiny(), setup.device).model
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: torch.zeros_like(like))
    n = len(setup.held_out)
    cuts = [torch.arange(0, n, 2), torch.arange(1, n, 2), torch.arange(0)]
    parts = [evaluate_part(model, setup.held_out, rows, 64, 2) for rows in cuts]
    whole = evaluate(model, setup.held_out, 100, samples=2)
    ours = added(parts, 2, 64)
    assert (ours.n, ours.estimator, ours.samples) == (n, whole.estimator, 2)
    for field in ("elbo", "nll", "kl", "iw", "bpd"):
        assert getattr(ours, field) == pytest.approx(getattr(whole, field), rel=1e-6)
    for name, units in whole.units.items():
        assert ours.units[name].kl == pytest.approx(units.kl, rel=1e-5)
        assert ours.units[name].variance == pytest.approx(units.variance, rel=1e-4)


def broken(run: Path, how: str) -> None:
    last = pointed(run / "checkpoints", "last")
    assert last is not None
    if how == "weights":
        file = last / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "state":
        file = last / "state.pt"
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "pickle":
        torch.save({"a": torch.zeros(1)}, last / "model.safetensors")
    else:
        shutil.rmtree(last)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("weights", "truncated or not a safetensors file"),
        ("state", "truncated, or not a training state"),
        ("pickle", "is a pickle"),
        ("gone", "cannot be read"),
    ],
)
def test_broken_checkpoints_are_refused_and_nothing_is_written(
    tmp_path: Path, how: str, sentence: str
) -> None:
    fit(tiny("train.steps=10"), tmp_path, quiet=True)
    broken(tmp_path, how)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=sentence):
        fit(tiny("train.steps=20"), tmp_path, resume=True, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == files


def test_resuming_with_another_model_shows_the_difference(tmp_path: Path) -> None:
    fit(tiny("train.steps=10"), tmp_path, quiet=True)
    with pytest.raises(UserError, match=r"another model: its layers\[1\]\.dim is 2, not 3"):
        fit(tiny("train.steps=20", "model.layers[1].dim=3"), tmp_path, resume=True, quiet=True)


@pytest.mark.parametrize(("before", "after"), [("adam", "adamax"), ("adamax", "adamw")])
def test_resuming_with_moments_of_another_optimiser(
    before: str, after: str, tmp_path: Path
) -> None:
    fit(tiny("train.steps=1", f"train.optimizer={before}"), tmp_path, quiet=True)
    with pytest.raises(UserError, match="changed to or from adamax"):
        fit(tiny("train.steps=2", f"train.optimizer={after}"), tmp_path, resume=True, quiet=True)


def test_resuming_past_the_end_and_longer(tmp_path: Path) -> None:
    fit(tiny("train.steps=20"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="has 20 steps already"):
        fit(tiny("train.steps=10"), tmp_path / "run", resume=True, quiet=True)
    fit(tiny("train.steps=40"), tmp_path / "run", resume=True, quiet=True)
    fit(tiny(), tmp_path / "whole", quiet=True)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_unsuitable_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(UserError, match="not empty"):
        fit(tiny(), tmp_path / "full", quiet=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        fit(tiny(), tmp_path / "file", quiet=True)
    with pytest.raises(UserError, match="cannot be written"):
        fit(tiny(), Path("/proc/nowhere"), quiet=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "x"]


def test_bfloat16_trains(tmp_path: Path) -> None:
    fit(tiny("train.precision=bfloat16"), tmp_path / "run", quiet=True)
    first, *_, last = [
        r["train/loss"] for r in read_metrics(tmp_path / "run") if "train/loss" in r
    ]
    assert last < first


def test_a_step_reads_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.item()`, `.tolist()` or truth of a tensor in a step: each would wait for the device."""
    config = tiny("train.grad_clip=1.0", "train.ema=0.9")
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    source = batches(setup, 0)
    train_step(state, next(source), config)
    called: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(Tensor, name)

        def noted(self: Tensor, *args: Any, _n: str = name, _o: Any = original) -> Any:
            called.append(_n)
            return _o(self, *args)

        monkeypatch.setattr(Tensor, name, noted)
    train_step(state, next(source), config)
    assert called == []


def test_a_gradient_that_overflows_names_where_it_began(tmp_path: Path) -> None:
    """A finite loss whose gradient turns NaN at the likelihood, not at the data's end."""
    from ladder.train.health import first_offender

    config = tiny("data.binarize=none")
    setup = set_up(config, tmp_path)
    state = new_state(config, setup.device)
    spoiled = state.model.likelihood[0].weight.register_hook(lambda g: g * float("nan"))
    before = state.model.top_down.finish[0].weight.register_hook(lambda g: g * float("nan"))
    clause = first_offender(state, next(batches(setup, 0)), 0, config)
    spoiled.remove()
    before.remove()
    assert clause == "the gradient of module likelihood.0.weight"


def test_resuming_takes_the_new_options_and_writes_them_down(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiny("train.steps=10"), run, quiet=True)
    config = tiny("train.steps=20", "train.optimizer=adamw", "train.weight_decay=0.1")
    state = new_state(config, torch.device("cpu"))
    last = pointed(run / "checkpoints", "last")
    assert last is not None
    restore(last, state)
    assert state.optimizer.param_groups[0]["weight_decay"] == 0.1
    fit(config, run, resume=True, quiet=True)
    assert resolve(run / "config.resolved.yaml") == config


def test_going_back_to_an_earlier_checkpoint_trusts_nothing_later(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "run/checkpoints"
    fit(tiny(), run, quiet=True)
    whole = weights(run)
    for later in ("step-00000030", "step-00000040"):
        (folder / later / "state.pt").write_bytes(b"broken")
    (folder / ".step-00000035.tmp").mkdir()
    (folder / "last").write_text("step-00000020")
    fit(tiny(), run, resume=True, quiet=True)
    assert_same(weights(run), whole)
    assert torch.load(folder / "step-00000040/state.pt")["step"] == 40
    assert not list(folder.glob(".*"))


def test_a_kill_before_best_is_marked_is_mended(tmp_path: Path) -> None:
    words = ("data.validation=100", "train.evaluate_every=10", "train.lr=0.01")
    fit(tiny(*words), tmp_path, quiet=True)
    best = tmp_path / "checkpoints/best"
    assert best.read_text() == "step-00000040"
    best.write_text("step-00000030")
    fit(tiny(*words), tmp_path, resume=True, quiet=True)
    assert best.read_text() == "step-00000040"


def test_equal_shapes_of_another_model_are_refused(tmp_path: Path) -> None:
    fit(tiny("train.steps=10"), tmp_path, quiet=True)
    with pytest.raises(UserError, match="its activation is 'relu', not 'tanh'"):
        fit(tiny("train.steps=20", "model.activation=tanh"), tmp_path, resume=True, quiet=True)


def test_resuming_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is there"):
        fit(tiny(), tmp_path / "nowhere", resume=True, quiet=True)
    assert not (tmp_path / "nowhere").exists()


def test_measuring_dynamic_training_data_draws_them_once(tmp_path: Path) -> None:
    from ladder.train.measure import measure

    fit(tiny("train.steps=10"), tmp_path / "run", quiet=True)
    record = measure(tmp_path / "run", split="train")
    model = from_pretrained(tmp_path / "run")
    drawn = load(tiny("data.binarize=static").data, [1, 8, 8], 0).train
    assert set(drawn.unique().tolist()) == {0, 255}
    assert record["elbo"] == pytest.approx(evaluate(model, drawn, 100).elbo)
    with pytest.raises(UserError, match="the model is the run's"):
        measure(tmp_path / "run", ["model.kl=closed_form"])


def test_a_run_keeps_saying_what_it_was_trained_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiny("train.steps=10"), run, quiet=True)
    resolved = (run / "config.resolved.yaml").read_text()
    for word in ("data.binarize=static", "objective.beta=0.5"):
        with pytest.raises(UserError, match="was trained with another"):
            fit(tiny(word), run, resume=True, quiet=True)
    fit(tiny("train.steps=10", "train.lr=1.0"), run, resume=True, quiet=True)
    assert (run / "config.resolved.yaml").read_text() == resolved  # nothing was trained with it
