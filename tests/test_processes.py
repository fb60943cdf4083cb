"""Two processes are one run: the same curve, one folder, after a death, and at a signal.

The tests start this file in several processes, which run `ladder` and let something happen to one
of them at a step.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor
from torch import distributed as dist

from ladder import cli
from ladder.build import resolve
from ladder.data import load
from ladder.pretrained import from_pretrained, pointed, read_weights
from ladder.train import fit, loop
from ladder.train.evaluate import SEED, added, evaluate_part
from ladder.train.run import UNITS, read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo"),
]
LONGEST = 240.0  # seconds, after which processes wait for each other for ever
STEPS, EVERY, DIES, STOPS = 20, 5, 13, 12
# 1,497 digits: the last batch of an epoch is of one datum, and one process has none of it.
CONFIG = f"""
model:
  system: hierarchy
  shape: [1, 8, 8]
  layers: [{{dim: 4, hidden: [16]}}, {{dim: 2, hidden: [8]}}]
data: {{name: digits, binarize: dynamic}}
objective: {{kl_target: 3.0}}
train:
  {{steps: {STEPS}, batch_size: 187, device: cpu, ema: 0.9, grad_clip: 20.0, skip_relative: 1.2,
   log_every: 7, checkpoint_every: {EVERY}}}
"""


def run_disturbed(number: str, step: str, *words: str) -> None:
    """`ladder` with these words, where process 1 gets a signal after a step, in its first life.

    Before that, with words that every process refuses.
    """
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    train_step, life = loop.train_step, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def disturbed(state: Any, *rest: Any) -> None:
        train_step(state, *rest)
        if (state.world.rank, state.step, life) == (1, int(step), "0"):
            os.kill(os.getpid(), int(number))

    loop.train_step = disturbed
    assert cli.main(["train", "run.yaml", "--out", "."]) == 2  # not empty
    sys.exit(cli.main(words))


class Runs(NamedTuple):
    """Runs of the same configuration."""

    whole: Path  # two processes
    said: str  # what they wrote on stdout
    killed: Path  # two, of which one died and both were started again
    deaths: str  # what was said about it
    stopped: Path  # two, told to stop, with two shards each
    codes: list[int]  # what they ended with
    words: list[str]  # what they said on stderr
    two: Path  # one process, two shards
    four: Path  # one process, four shards


Child = subprocess.Popen[str]


def torchrun(folder: Path, restarts: int, *words: str) -> Child:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    return started([*launcher, *words], folder)


def started(command: list[str], folder: Path, **more: str) -> Child:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **more}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, stdout=pipe, stderr=pipe, text=True, env=environment
    )


def by_slurm(folder: Path, command: list[str]) -> list[Child]:
    """Two processes, as `srun` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "MASTER_PORT": port}
    meeting["SLURM_STEP_NUM_TASKS"] = "2"
    return [
        started(command, folder, SLURM_PROCID=rank, SLURM_LOCALID=rank, **meeting)
        for rank in ("0", "1")
    ]


@contextmanager
def ended(children: list[Child]) -> Iterator[None]:
    """Whatever happens, no process is left; a launcher takes those that it started with it."""
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(CONFIG)
    words = ["train", "run.yaml", "--quiet"]
    kill = [str(int(signal.SIGKILL)), str(DIES), *words, "--out", "killed", "train.resume=auto"]
    stop = [str(int(signal.SIGTERM)), str(STOPS), *words, "--out", "stopped"]
    children = [
        torchrun(folder, 0, "-m", "ladder", *words),
        torchrun(folder, 1, __file__, *kill),
        *by_slurm(folder, [sys.executable, __file__, *stop, "train.accumulate=2"]),
    ]
    with ended(children):
        for shards, name in ((2, "two"), (4, "four")):
            config = resolve(folder / "run.yaml", [f"train.accumulate={shards}"])
            fit(config, folder / name, quiet=True)
        texts = [child.communicate(timeout=LONGEST) for child in children]
    errors = "\n".join(text[1] for text in texts)
    assert [child.returncode for child in children[:2]] == [0, 0], errors
    (whole,) = (folder / "runs").iterdir()
    said, deaths, codes = texts[0][0], texts[1][1], [child.returncode for child in children[2:]]
    names = ("killed", "stopped", "two", "four")
    killed, stopped, two, four = (folder / name for name in names)
    words = [text[1] for text in texts[2:]]
    return Runs(whole, said, killed, deaths, stopped, codes, words, two, four)


def without_time(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if "per_s" not in k} for r in read_metrics(run)]


def checkpoint(run: Path, name: str = "last") -> Path:
    path = pointed(run / "checkpoints", name)
    assert path is not None
    return path


def weights(run: Path) -> dict[str, Tensor]:
    return read_weights(checkpoint(run) / "model.safetensors")


def curve(run: Path, steps: int) -> list[dict[str, Any]]:
    """Lines about training up to a step."""
    return [r for r in without_time(run) if r["step"] <= steps and "train/loss" in r]


def assert_near(run: Path, other: Path, steps: int = STEPS) -> None:
    """The same metrics up to a step, to rounding."""
    ours, theirs = curve(run, steps), curve(other, steps)
    assert len(ours) == len(theirs) >= 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value == pytest.approx(b[key], rel=2e-5, abs=1e-6), (a["step"], key)


def test_two_processes_follow_the_curve_of_one(runs: Runs) -> None:
    assert_near(runs.whole, runs.two)
    for name, weight in weights(runs.whole).items():
        torch.testing.assert_close(weight, weights(runs.two)[name], rtol=1e-5, atol=1e-6)
    last = curve(runs.whole, STEPS)[-1]
    assert last["train/skipped"] == 1  # a batch of one datum
    assert last["data"] == 187 * 2  # of both


def test_the_curve_depends_on_the_noise_of_each_shard(runs: Runs) -> None:
    """The comparison above can tell other draws."""
    with pytest.raises(AssertionError):
        assert_near(runs.two, runs.four)


def test_each_process_measures_its_share_of_the_held_out_data(runs: Runs) -> None:
    config = resolve(yaml.safe_load(CONFIG))
    images = load(config.data, config.model.shape, config.train.seed).test
    model = from_pretrained(runs.whole)
    parts = [
        evaluate_part(model, images, torch.arange(rank, len(images), 2), 187, seed=SEED + rank)
        for rank in (0, 1)
    ]
    expected = added(parts, 0, 64)
    found = [record for record in read_metrics(runs.whole) if "val/elbo" in record][-1]
    assert found["step"] == STEPS
    assert found["val/elbo"] == pytest.approx(expected.elbo, rel=1e-6)
    assert found["val/nll"] == pytest.approx(expected.nll, rel=1e-6)


def test_two_processes_agree_on_one_folder_and_one_speaks(runs: Runs) -> None:
    assert runs.whole.name.startswith("hierarchy-")
    assert runs.said.splitlines() == [f"runs/{runs.whole.name}"]
    assert (runs.whole / "report.html").is_file()


def test_after_a_death_all_go_on_bit_for_bit_from_the_last_checkpoint(runs: Runs) -> None:
    assert "-9" in runs.deaths  # somebody was killed
    assert without_time(runs.killed) == without_time(runs.whole)
    assert (runs.killed / UNITS).read_bytes() == (runs.whole / UNITS).read_bytes()
    ours, theirs = weights(runs.killed), weights(runs.whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_signal_to_one_stops_all_at_the_same_step(runs: Runs) -> None:
    assert runs.codes == [143, 143]
    last = checkpoint(runs.stopped)
    assert last.name == f"step-{STOPS + 1:08d}"  # a step late, so that no step waits for the word
    assert torch.load(last / "state.pt")["step"] == STOPS + 1


def test_what_the_first_one_cannot_do_is_said_once(runs: Runs) -> None:
    first, second = runs.words
    assert first.startswith("ladder: .: not empty; choose another --out"), first
    assert "ladder: " not in second
    assert "Traceback" not in first + second


def test_shards_of_processes_are_shards_of_the_batch(runs: Runs) -> None:
    assert_near(runs.stopped, runs.four, STOPS)


if __name__ == "__main__":
    run_disturbed(*sys.argv[1:])
