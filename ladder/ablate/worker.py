"""A process that does one cell: `python -m ladder.ablate.worker`, told what by its stdin.

Its stdin stays open as long as the command lives. When that ends, so does the worker, with a
checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ladder.ablate.cell import Task, work
from ladder.ablate.grid import Cell
from ladder.build import resolve
from ladder.errors import UserError, WorkFailed
from ladder.train.device import flush_denormals
from ladder.train.stop import Stopped


def to_line(task: Task, minutes: float | None) -> str:
    """What a worker reads from its stdin."""
    assert task.cell.config is not None
    config = task.cell.config.model_dump(mode="json")
    told = {
        "cell": task.cell._replace(config=None)._asdict(),
        "config": config,
        "out": str(task.out),
        "samples": task.samples,
        "n": task.n,
        "minutes": minutes,
    }
    return json.dumps(told) + "\n"


def main() -> int:
    """Do the cell; the exit code is that of `ladder train`, the reason the last line of stderr."""
    import torch

    torch.set_num_threads(1)
    flush_denormals()
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    cell = Cell(**told["cell"])._replace(config=resolve(told["config"]))
    task = Task(cell, Path(told["out"]), told["samples"], told["n"])
    try:
        work(task, told["minutes"], quiet=True)
    except Stopped as error:
        return _fail(error, error.exit_code)
    except (UserError, WorkFailed, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _outlive_nobody() -> None:
    # Until the command closes it, or dies. Unbuffered: a lock held here would hinder the end.
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _fail(reason: object, code: int) -> int:
    print(reason, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
