"""The run directory: configuration, environment, metrics."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ladder.build import resolve
from ladder.config import Config, ModelConfig
from ladder.errors import UserError, WorkFailed
from ladder.files import write_atomic
from ladder.parse import to_yaml

GIVEN, RESOLVED, ENVIRONMENT, METRICS, UNITS = (
    "config.yaml",
    "config.resolved.yaml",
    "environment.json",
    "metrics.jsonl",
    "units.jsonl",
)


def default_path(config: Config[ModelConfig]) -> Path:
    """`runs/<preset>-<time>`, a folder that is not there yet."""
    stem = f"{config.preset or config.model.system}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def check_free(out: Path) -> None:
    """Refuse a folder that holds something or cannot be written; make nothing.

    Args:
        out: Where a new run is to go.

    Raises:
        UserError: If it is a file, not empty, or not writable.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(not p.name.endswith(".tmp") for p in out.iterdir()):
        raise UserError(f"{out}: not empty; choose another --out, or go on with --resume {out}")
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{out}: cannot be written; choose another --out")


def create(out: Path, config: Config[ModelConfig], given: str) -> None:
    """Make the run directory.

    Args:
        out: Folder that `check_free` accepts.
        config: The resolved configuration.
        given: What the user wrote, as YAML.

    Raises:
        UserError: If it cannot be written.
    """
    check_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / RESOLVED, to_yaml(config))  # first: with it the run can be gone on with
        write_atomic(out / GIVEN, given)
        write_atomic(out / ENVIRONMENT, json.dumps(environment(config), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None


def record(out: Path, config: Config[ModelConfig]) -> None:
    """Keep config.resolved.yaml true: written when a checkpoint trained with it is there."""
    text = to_yaml(config)
    if (out / RESOLVED).read_text(encoding="utf-8") != text:
        write_atomic(out / RESOLVED, text)


def check_same(out: Path, config: Config[ModelConfig]) -> None:
    """Refuse to go on with a run on other data or for another objective.

    Args:
        out: The run directory.
        config: What is to be trained now.

    Raises:
        UserError: If there is no run, or its record would become untrue.
    """
    before = read_config(out)
    moved = config.data.model_copy(update={"root": before.data.root})
    for section, ours, theirs in (
        ("data", moved, before.data),
        ("objective", config.objective, before.objective),
    ):
        if ours != theirs:
            raise UserError(
                f"{out}: was trained with another '{section}' section; "
                "start a new run, or leave it as it was"
            )


def read_config(run: Path, overrides: list[str] | None = None) -> Config[ModelConfig]:
    """The resolved configuration of a run.

    Args:
        run: A run directory.
        overrides: Words `key=value` laid over it.

    Returns:
        The configuration.

    Raises:
        UserError: If the folder is no run.
    """
    if not (run / RESOLVED).is_file():
        raise UserError(f"{run}: no run is there ({RESOLVED} is missing)")
    return resolve(run / RESOLVED, overrides or [])


def environment(config: Config[ModelConfig]) -> dict[str, Any]:
    """What a reader needs to repeat the run; no host name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ladder": _version(),
        "device": _device_name(config.train.device),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": config.train.seed,
    }


def _version() -> str:
    from importlib.metadata import version

    return version("ladder-vae")


def _device_name(name: str) -> str:
    if name != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.machine() + " cpu"


def git_commit() -> str | None:
    """Commit of the checkout that ladder is imported from, or `None` for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def append_metrics(run: Path, record: dict[str, Any], name: str = METRICS) -> None:
    """Add one line to metrics.jsonl or units.jsonl; raises WorkFailed if that cannot be."""
    try:
        with (run / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise WorkFailed(
            f"{run / name}: cannot be written: {error.strerror}; checkpoints are whole"
        ) from None


def read_metrics(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Every whole line of metrics.jsonl, or of another record of the run."""
    path = run / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if re.fullmatch(r"\{.*\}", line)]


def truncate_metrics(run: Path, step: int) -> None:
    """Drop what was written after a step, since resuming there writes it again."""
    for name in (METRICS, UNITS):
        kept = [json.dumps(r) + "\n" for r in read_metrics(run, name) if r["step"] <= step]
        if (run / name).is_file():
            write_atomic(run / name, "".join(kept))
