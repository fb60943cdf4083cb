"""Processes that train together: who they are, what they agree on, and what each computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from ladder import cli
from ladder.build import resolve
from ladder.errors import SaidByTheFirst, UserError
from ladder.train.feed import Setup, check_last_batch, own_part
from ladder.train.meter import Meter
from ladder.train.world import (
    Consensus,
    World,
    agreed,
    found,
    gathered,
    joined,
    led,
    left_alone,
    summed,
)

# --- who a process is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(0, 1, 0)),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, World(5, 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, World(0, 1, 0)),
        (
            {"SLURM_PROCID": "3", "SLURM_LOCALID": "2", "SLURM_STEP_NUM_TASKS": "4"},
            World(3, 4, 2),
        ),
        # The shell of a batch script is one of nothing, whatever the job has.
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}, World(0, 1, 0)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            World(1, 2, 1),
        ),
        # torchrun, started by srun once on each machine, knows better.
        (
            {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16"}
            | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            World(9, 16, 1),
        ),
    ],
)
def test_a_process_is_who_its_launcher_says(environment: dict[str, str], world: World) -> None:
    assert found(environment) == world
    assert world.leads == (world.rank == 0)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK: 'one' is no number; start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE: '' is no number; start with torchrun"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: '-1' is no number; start with torchrun"),
        (
            {"RANK": "0", "LOCAL_RANK": "x", "WORLD_SIZE": "2"},
            "LOCAL_RANK: 'x' is no number; start with torchrun",
        ),
        (
            {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "2"},
            "SLURM_PROCID: 2 should be below SLURM_STEP_NUM_TASKS, which is 2; "
            "start with torchrun",
        ),
    ],
)
def test_a_launcher_s_nonsense_is_a_sentence(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        found(environment)
    assert str(error.value) == sentence


def test_many_processes_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "SLURM_LAUNCH_NODE_IPADDR"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UserError, match=r"^MASTER_ADDR: not said, .*; start with torchrun"),
        joined(World(0, 2), torch.device("cpu")),
    ):
        pass


def test_alone_there_is_no_group_and_nobody_to_ask() -> None:
    world = World()
    with joined(world, torch.device("cpu")):
        assert not dist.is_initialized()
    assert agreed("a", world) == "a"
    assert gathered(3, world) == [3]
    values = torch.ones(2)
    assert summed(values, world) is values
    consensus = Consensus(world)
    assert [consensus.of(code) for code in (None, 143, None)] == [None, 143, None]


def nothing_fits() -> None:
    raise UserError("nothing fits")


@pytest.mark.parametrize(("rank", "kind"), [(0, UserError), (1, SaidByTheFirst)])
def test_a_failure_of_the_first_one_is_its_own_to_say(
    rank: int, kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ladder.train.world.agreed", lambda *_: "nothing fits")
    with pytest.raises(UserError, match="nothing fits") as error:
        led(nothing_fits, World(rank, 2))
    assert type(error.value) is kind

    def run(_: object) -> int:
        raise error.value

    monkeypatch.setattr("ladder.train.command.run", run)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "mnist_2layer"]) == 2
    assert capsys.readouterr().err == ("" if rank else "ladder: nothing fits\n")


@pytest.mark.parametrize(
    ("rank", "said"),
    [
        ("1", "ladder: process 1: train.device: 'cuda' is not there for process 99"),
        ("x", "ladder: RANK: 'x' is no number; start with torchrun\n"),
    ],
)
def test_what_only_one_process_cannot_do_it_says_itself(
    rank: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": "99", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    words = ["mnist_2layer", "data=digits", "train.device=cuda", "--out", str(tmp_path / "run")]
    assert cli.main(["train", *words]) == 2
    assert capsys.readouterr().err.startswith(said)


# --- what each process computes -----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 64])
def test_every_row_counts_in_one_process(n: int, size: int) -> None:
    index = torch.randperm(100)[:n]
    worlds = [World(rank, size) for rank in range(size)]
    parts = [own_part(index, world) for world in worlds]
    assert all(len(part) for part in parts)  # or a process would not keep step
    counted = [w.counted(len(part), n) for w, part in zip(worlds, parts, strict=True)]
    rows = torch.cat([part[:count] for part, count in zip(parts, counted, strict=True)])
    assert torch.equal(rows, index)
    assert set(counted) <= {0, n // size, n // size + 1}  # shared as evenly as can be


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (8, 4), (3, 4), (9, 4)])
def test_the_batches_of_an_epoch_have_its_data(n: int, batch: int) -> None:
    config = resolve(
        {"model": {"system": "hierarchy", "shape": [2], "layers": [{"dim": 1}]}},
        ["data=digits", "train.steps=9", f"train.batch_size={batch}"],
    )
    images = torch.zeros(n, 2)
    setup = Setup(config, Path(), images, images, "test", torch.device("cpu"), 9, World(1, 2))
    sizes = [setup.data_at(step) for step in range(2 * setup.steps_per_epoch)]
    assert sizes == 2 * [len(part) for part in torch.arange(n).split(batch)]


NORMED = "lvae_mnist_3layer"  # batch norm of one number for each datum


@pytest.mark.parametrize(
    ("n", "batch", "shards", "size", "sentence"),
    [
        (35, 32, 2, 2, "train.accumulate: 2 parts are more than each of 2 processes has"),
        (37, 32, 2, 2, None),  # of five one has three, the other two: two shards each
        (33, 32, 1, 2, "train.batch_size: 32 leaves one of 33 data for the last batch"),
        (35, 32, 1, 2, None),  # the one datum of a process is normalised with the others' two
        # Of five whole, one process has three shards, the other two.
        (
            20,
            5,
            3,
            2,
            "train.accumulate: 3 parts are more than each of 2 processes has of a batch",
        ),
        (35, 32, 3, 1, "train.batch_size: 32 in 3 parts leaves one of 35 data"),
        (38, 32, 3, 1, None),
        (64, 32, 1, 1, None),
    ],
)
def test_batch_norm_says_before_the_start_what_it_cannot(
    n: int, batch: int, shards: int, size: int, sentence: str | None
) -> None:
    words = ["data=digits", "train.steps=9", f"train.batch_size={batch}"]
    config = resolve(NORMED, [*words, f"train.accumulate={shards}"])
    images, cpu = torch.zeros(n, 1, 28, 28), torch.device("cpu")
    setup = Setup(config, Path(), images, images, "test", cpu, 9, World(0, size))
    if sentence is None:
        check_last_batch(setup)
        return
    with pytest.raises(UserError) as error:
        check_last_batch(setup)
    assert str(error.value).startswith(sentence)


def test_what_processes_metered_is_brought_to_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And stays with it: collecting twice, or after a resume, counts nothing twice."""
    worlds = [World(rank, 2) for rank in (0, 1)]
    meters = [Meter(torch.device("cpu")) for _ in worlds]
    for meter, value, data in zip(meters, (1.0, 4.0), (3, 1), strict=True):
        meter.add({"a": torch.tensor(value)}, data)

    def collect() -> None:
        every = [[*m.sums.tolist(), m.counted.item()] for m in meters if m.sums is not None]
        both = torch.tensor(every, dtype=torch.float64).sum(0)
        monkeypatch.setattr("ladder.train.meter.summed", lambda *_: both.clone())
        for meter, world in zip(meters, worlds, strict=True):
            meter.collect(world)

    for _ in range(2):
        collect()
        assert meters[0].read() == {"a": (3 * 1.0 + 1 * 4.0) / 4}
        assert meters[1].read() == {}


@pytest.mark.parametrize(
    ("text", "size", "ended"),
    [
        ("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41", 2, True),
        ("NCCL communicator was aborted on rank 0", 2, True),
        ("mat1 and mat2 shapes cannot be multiplied", 2, False),
        ("Connection closed by peer", 1, False),
    ],
)
def test_who_is_left_alone_says_so_in_a_sentence(text: str, size: int, ended: bool) -> None:
    error = RuntimeError(text)
    told = left_alone(error, 6, World(0, size))
    assert (told is not error) is ended
    if ended:
        assert str(told).startswith("step 7: another process ended")
