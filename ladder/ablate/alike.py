"""Cells that are alike, trained together in one pass instead of one after another."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ladder.ablate.cell import Task, resumable, trained, training_config
from ladder.ablate.jobs import Done, minutes_left, one_by_one
from ladder.config import Config
from ladder.parse import to_yaml
from ladder.train.device import choose_device
from ladder.train.many import Job, fit_together
from ladder.train.stop import Stopped
from ladder.train.together import kind_of, obstacle


def on_gpu(tasks: Sequence[Task]) -> bool:
    """Whether a cell trains on a GPU, most of which small models leave idle."""
    devices = {_config(task).train.device for task in tasks}
    return any(choose_device(device).type == "cuda" for device in devices)


def alike_together(
    tasks: Sequence[Task], done: Done, quiet: bool, tell: Callable[[str], None]
) -> None:
    """Train cells of one kind together, then do what is left one by one.

    Args:
        tasks: The cells.
        done: Called after each with the reason why it failed, or `None`.
        quiet: Show no progress.
        tell: Called with a sentence where cells that seemed alike could not train together.

    Raises:
        Stopped: After a signal or at the time limit.
    """
    begun, reasons = time.monotonic(), dict[str, str]()
    for group in groups(tasks):
        minutes = minutes_left(group[0], begun)
        try:
            failed = fit_together([_job(t) for t in group], minutes, quiet)
        except Stopped:
            raise
        except Exception as error:  # what one of them cannot do with others it may do alone
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            tell(f"{len(group)} cells could not train together ({reason}); each goes on alone")
            continue
        reasons |= {t.cell.name: failed[t.run] for t in group if t.run in failed}
    for task in tasks:
        if task.cell.name in reasons:
            done(task, reasons[task.cell.name])
        else:
            one_by_one([task], done, quiet, begun)


def groups(tasks: Sequence[Task]) -> list[list[Task]]:
    """Cells that are still to be trained and can be so together, by kind."""
    kinds: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if not trained(task) and obstacle(_config(task)) is None:
            kinds[kind_of(_config(task))].append(task)
    return [group for group in kinds.values() if len(group) > 1]


def _job(task: Task) -> Job:
    return Job(training_config(task, None), task.run, to_yaml(_config(task)), resumable(task))


def _config(task: Task) -> Config[Any]:
    assert task.cell.config is not None
    return task.cell.config
