"""One cell: trained, measured, and read back from its run directory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ladder.ablate.grid import Cell
from ladder.config import Config, ModelConfig
from ladder.data import load
from ladder.diagnostics import Units, unit_profile
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.parse import to_yaml
from ladder.pretrained import from_pretrained, pointed
from ladder.train import fit
from ladder.train.evaluate import SEED
from ladder.train.measure import EVALUATIONS, measure
from ladder.train.run import ENVIRONMENT, RESOLVED, git_commit, read_metrics
from ladder.train.state import choose_device

Record = dict[str, Any]

UNITS = "test_units.json"
DRAWS = 10  # of the latents that a posterior mean depends on: their noise is no activity


class Task(NamedTuple):
    """What is done to a cell.

    Attributes:
        cell: The cell; it has a configuration.
        out: The ablation's folder.
        samples: Importance samples K; 0 measures only the ELBO.
        n: Test data for the importance-weighted bound; `None` takes all.
    """

    cell: Cell
    out: Path
    samples: int
    n: int | None

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.out / self.cell.name

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """K and n of every measurement; the last one has the importance-weighted bound."""
        n = min(self.n or self.cell.test, self.cell.test)
        if not self.samples:
            return [(0, self.cell.test)]
        return [(0, self.cell.test)] * (n < self.cell.test) + [(self.samples, n)]


class Result(NamedTuple):
    """What a finished cell comes to.

    Attributes:
        numbers: By name: `parameters`, `steps`, `elbo`, `iw100`, `kl_z1`, `units_z1`,
            `active_units_z1`, `speaking_units_z1`, `seconds`; bounds and KLs in nats per datum.
        evaluations: The records that the bounds come from, as in evaluations.jsonl.
        trained_at: Commit that the training was started at.
    """

    numbers: dict[str, float]
    evaluations: list[Record]
    trained_at: str | None


def trained(task: Task) -> bool:
    """Whether the last step's checkpoint is there."""
    last = pointed(task.run / "checkpoints", "last")
    return last is not None and last.name == f"step-{task.cell.steps:08d}"


def training_config(task: Task, minutes: float | None) -> Config[ModelConfig]:
    """The cell's configuration, with the ablation's own time limit."""
    config = task.cell.config
    assert config is not None
    train = config.train.model_copy(update={"time_limit": minutes, "resume": False})
    return config.model_copy(update={"train": train})


def resumable(task: Task) -> bool:
    """Whether the cell was begun already."""
    return (task.run / RESOLVED).is_file()


def work(task: Task, minutes: float | None, quiet: bool) -> None:
    """Train what is not trained yet, and measure what is not measured yet.

    Args:
        task: The cell.
        minutes: Time left; `None` for no limit.
        quiet: Show no progress.

    Raises:
        UserError, WorkFailed: If it cannot be.
        Stopped: After a signal or at the time limit, with a checkpoint.
    """
    assert task.cell.config is not None
    if not trained(task):
        config, given = training_config(task, minutes), to_yaml(task.cell.config)
        fit(config, task.run, given=given, resume=resumable(task), quiet=quiet)
    for samples, n in task.wanted:
        if _evaluation(task, samples, n) is None:
            _drop_torn_line(task.run / EVALUATIONS)
            measure(task.run, samples=samples, n=n)
    if _units(task) is None:
        _measure_units(task)


def result(task: Task) -> Result | None:
    """Read a cell back; `None` if something of it is still to be done."""
    found = [_evaluation(task, samples, n) for samples, n in task.wanted] if trained(task) else []
    evaluations = [record for record in found if record is not None]
    units = _units(task)
    if not evaluations or len(evaluations) < len(task.wanted) or units is None:
        return None
    elbo, bound = evaluations[0], evaluations[-1]
    numbers: dict[str, float] = {
        "parameters": task.cell.parameters,
        "steps": task.cell.steps,
        "elbo": elbo["elbo"],
        **({f"iw{task.samples}": bound[f"iw{task.samples}"]} if task.samples else {}),
    }
    for name in reversed(units):
        numbers[f"kl_{name}"] = elbo[f"kl_{name}"]
        numbers[f"units_{name}"] = len(units[name].kl)
        numbers[f"active_units_{name}"] = units[name].active
        numbers[f"speaking_units_{name}"] = units[name].speaking
    numbers["seconds"] = seconds(task.run)
    return Result(numbers, evaluations, _commit(task.run))


def seconds(run: Path) -> float:
    """Time that the steps took, over all calls; evaluations and checkpoints do not count."""
    windows = [r for r in read_metrics(run) if "train/images_per_s" in r]
    return math.fsum(r["data"] / r["train/images_per_s"] for r in windows)


def _measure_units(task: Task) -> None:
    """KL and activity of every unit over the test data, into a file of the run."""
    config = task.cell.config
    last = pointed(task.run / "checkpoints", "last")
    assert config is not None
    assert last is not None
    model = from_pretrained(last, str(choose_device(config.train.device)))
    images = load(config.data, config.model.shape, config.train.seed).test
    profile = unit_profile(model, images, config.train.batch_size, DRAWS, SEED)
    record = {
        "step": task.cell.steps,
        "split": "test",
        "n": len(images),
        "draws": DRAWS,
        "seed": SEED,
        "commit": git_commit(),
        "units": {name: layer._asdict() for name, layer in profile.items()},
    }
    write_atomic(task.run / UNITS, json.dumps(record) + "\n")


def _units(task: Task) -> dict[str, Units] | None:
    """What `_measure_units` wrote for the last checkpoint, top first."""
    if not (task.run / UNITS).is_file():
        return None
    record = json.loads((task.run / UNITS).read_text(encoding="utf-8"))
    if (record["step"], record["draws"]) != (task.cell.steps, DRAWS):
        return None
    return {name: Units(**layer) for name, layer in record["units"].items()}


def _evaluation(task: Task, samples: int, n: int) -> Record | None:
    """The newest record of this measurement of the last checkpoint."""
    wanted = {"split": "test", "n": n, "seed": SEED, "step": task.cell.steps}
    records: list[Record] = read_metrics(task.run, EVALUATIONS)
    for record in reversed(records):
        if all(record.get(key) == value for key, value in wanted.items()) and (
            record.get("estimator", "").endswith(f"K={samples}" if samples else "1 sample")
        ):
            return record
    return None


def _drop_torn_line(path: Path) -> None:
    """What a kill left half written would spoil the next line too."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text and not text.endswith("\n"):
        write_atomic(path, text[: text.rfind("\n") + 1])


def _commit(run: Path) -> str | None:
    try:
        environment = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run / ENVIRONMENT}: missing or not JSON; delete the cell") from None
    commit: str | None = environment.get("git_commit")
    return commit
