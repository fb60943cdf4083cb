"""Training steps of several processes beside those of one.

    python benchmarks/scaling.py                                       # every case, 2 processes
    python benchmarks/scaling.py mnist_2layer=256 --strong --processes 2 4
    python benchmarks/scaling.py nvae_cifar10=32 --device cuda --processes 8

For each number n of processes `torchrun` starts n of them, and then they take turns: in every
round the first one takes a few steps alone while the others wait, and then all of them step
together, each with one thread. A barrier stands before and after, so a turn is as long as that of
the slowest. Efficiency is the images per second of n over n times those of one in the same round;
the median over rounds is kept. With `--weak`, the default, every process has the batch that is
named; with `--strong` they share it. `cpu_efficiency` is CPU seconds for an image of one process
over those of n: what it costs to speak to each other, whatever else runs on the machine. The
all-reduce of as many bytes as the gradients have is timed by itself: its `bus` bandwidth is
2 (n - 1) / n times the bytes over the time, what each process sends where they stand in a ring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed as dist

from ladder.batchnorm import alone
from ladder.build import build_model, resolve
from ladder.config import Config, ModelConfig
from ladder.train.device import choose_device
from ladder.train.state import new_state
from ladder.train.step import train_step
from ladder.train.world import Consensus, World, agreed, found, gathered, joined

CASES = {"mnist_2layer": 128, "configs/vdvae_small.yaml": 16, "vdvae_cifar10": 2}
SHORTEST = 0.5  # seconds of a turn, which is as many steps as that takes
WAYS = ("one", "all", "exchange")
SAME = ("preset", "batch", "scaling", "processes")  # what names a row
CHILD = "LADDER_SCALING"  # of the environment: what a process is told
Row = dict[str, Any]


class Case(NamedTuple):
    """What each process is told."""

    preset: str
    batch: int
    strong: bool
    device: str
    rounds: int
    steps: int  # of a turn; 0 takes as many as last `SHORTEST`
    out: str  # where the first process writes what was found


class Turn(NamedTuple):
    """What a turn took, for a step."""

    wall: float
    cpu: float  # seconds of all processes that worked


# --- what each process does ---------------------------------------------------------------------


def work(case: Case) -> None:
    """Take turns; the first process writes what was found."""
    torch.set_num_threads(1)
    world = found()
    words = [f"train.device={case.device}", "train.compile=none"]
    config = resolve(case.preset, words)
    with joined(world, choose_device(case.device, world.local)):
        row = measure(case, config, world)
        if world.leads:
            Path(case.out).write_text(json.dumps(row))


def measure(case: Case, config: Config[ModelConfig], world: World) -> Row:
    """Round after round of turns."""
    device = choose_device(case.device, world.local)
    share = case.batch // world.size if case.strong else case.batch
    steps = {"all": stepper(config, device, share, world)}
    if world.leads:
        with alone():
            steps["one"] = stepper(config, device, case.batch, World())
    parameters = [p for p in build_model(config=config).parameters() if p.requires_grad]
    gradients = torch.zeros(sum(p.numel() for p in parameters), device=device)
    steps["exchange"] = lambda: dist.all_reduce(gradients)
    times: dict[str, int] = {}
    for way in WAYS:
        first = [turn(steps.get(way), 1, way, device, world) for _ in range(2)][1]
        times[way] = agreed(case.steps or max(1, int(SHORTEST / first.wall)), world)
    turns: dict[str, list[Turn]] = {way: [] for way in WAYS}
    for _ in range(case.rounds):
        for way in WAYS:
            turns[way].append(turn(steps.get(way), times[way], way, device, world))
    sizes = {"one": case.batch, "all": share * world.size, "gradients": gradients.nbytes}
    return summary(turns, sizes, world.size)


def stepper(
    config: Config[ModelConfig], device: torch.device, share: int, world: World
) -> Callable[[], None]:
    """A step of a training of these processes, each with so many random bytes."""
    x = torch.randint(0, 256, (share, *config.model.shape), device=device).float() / 255
    state, consensus = new_state(config, device, x, 10**6, world), Consensus(world)

    def step() -> None:
        train_step(state, x, config, share * world.size)
        consensus.of(None)

    return step


def turn(
    step: Callable[[], None] | None, times: int, way: str, device: torch.device, world: World
) -> Turn:
    """Steps of one process, or of all, from one barrier to the next."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    with alone() if way == "one" else nullcontext():
        for _ in range(times if step is not None else 0):
            step()  # type: ignore[misc]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cpu = time.process_time() - cpu
    dist.barrier()
    wall = time.perf_counter() - wall
    spent = gathered(cpu, world)
    return Turn(wall / times, (spent[0] if way == "one" else sum(spent)) / times)


def summary(turns: dict[str, list[Turn]], sizes: dict[str, int], n: int) -> Row:
    """Medians over the rounds; ratios are taken round by round."""
    one, all_ = turns["one"], turns["all"]
    alike = sizes["all"] / sizes["one"]
    pairs = list(zip(one, all_, strict=True))
    efficiency = [alike * a.wall / (n * b.wall) for a, b in pairs]
    median = statistics.median
    middle = {way: Turn(*map(median, zip(*turns[way], strict=True))) for way in WAYS}
    return {
        "processes": n,
        "images_per_s_one": sizes["one"] / middle["one"].wall,
        "images_per_s": sizes["all"] / middle["all"].wall,
        "efficiency": median(efficiency),
        "efficiencies": efficiency,
        "cpu_efficiency": median([alike * a.cpu / b.cpu for a, b in pairs]),
        "seconds_one": middle["one"].wall,
        "seconds": middle["all"].wall,
        "cpu_seconds_one": middle["one"].cpu,
        "cpu_seconds": middle["all"].cpu,
        "gradient_bytes": sizes["gradients"],
        "exchange_seconds": middle["exchange"].wall,
        "exchange_cpu_seconds": middle["exchange"].cpu,
        "bus_gb_per_s": 2 * (n - 1) / n * sizes["gradients"] / middle["exchange"].wall / 1e9,
        "rounds": len(one),
    }


# --- what starts them ---------------------------------------------------------------------------


def launched(case: Case, n: int) -> Row:
    """A row of the results."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), __file__]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        told = json.dumps(case._replace(out=str(out)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", CHILD: told}
        subprocess.run(command, env=environment, check=True)
        row: Row = json.loads(out.read_text())
    kind = "strong" if case.strong else "weak"
    return {"preset": case.preset, "batch": case.batch, "scaling": kind, **row}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="PRESET[=BATCH]")
    add("--processes", type=int, nargs="+", default=[2], metavar="N")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--weak", action="store_true", help="the batch is each process's (default)")
    kind.add_argument("--strong", action="store_true", help="the batch is shared by all")
    add("--rounds", type=int, default=7)
    add("--steps", type=int, default=0, help=f"of a turn; default: as many as last {SHORTEST} s")
    add("--device", default="cpu")
    add("--append", action="store_true", help="keep the other rows of the file")
    add("--note", help="a sentence that is kept, such as what else was running")
    found = parser.parse_args(words)
    if min(found.processes) < 2:
        parser.error("--processes: 2 or more; one process alone is in every row")
    return found


def main(words: list[str] | None = None) -> None:
    """Measure, print and write."""
    from conftest import write_result

    torch.set_num_threads(1)
    asked = parse(words)
    rows = earlier(asked.device) if asked.append else []
    for word in asked.cases or CASES:
        preset, _, batch = word.partition("=")
        size = int(batch or CASES.get(preset) or resolve(preset, []).train.batch_size)
        case = Case(preset, size, asked.strong, asked.device, asked.rounds, asked.steps, "")
        for n in asked.processes:
            row = {**launched(case, n), "note": asked.note}
            rows = [old for old in rows if any(old[key] != row[key] for key in SAME)] + [row]
            path = write_result("scaling", {"rows": rows}, asked.device)
            print(line(row), flush=True)
    print(path)


def earlier(device: str) -> list[Row]:
    """Rows of the results that are there."""
    from conftest import RESULTS

    version, kind = torch.__version__.split("+")[0], torch.device(device).type
    path = RESULTS / f"benchmark-scaling-{kind}-float32-pt{version}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def line(row: Row) -> str:
    """What is printed of a row."""
    return (
        f"{row['preset']:<26} {row['batch']:>4} {row['scaling']:<6} x{row['processes']}  "
        f"{row['images_per_s_one']:9.2f} -> {row['images_per_s']:9.2f} images/s  "
        f"efficiency {row['efficiency']:.2f}, of CPU time {row['cpu_efficiency']:.2f}  "
        f"{row['gradient_bytes'] / 2**20:.1f} MiB in {row['exchange_seconds'] * 1e3:.1f} ms, "
        f"{row['bus_gb_per_s']:.2f} GB/s"
    )


if __name__ == "__main__":
    if CHILD in os.environ:
        work(Case(*json.loads(os.environ[CHILD])))
    else:
        main()
