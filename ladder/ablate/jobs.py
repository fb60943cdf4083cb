"""Doing the cells: one after another here, or several at once in workers of one thread each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

from ladder.ablate.cell import Task, work
from ladder.ablate.worker import to_line
from ladder.errors import UserError, WorkFailed
from ladder.train.stop import Stopped, StopWatch

POLL = 0.05  # seconds
STOPS = (75, 130, 143)
Done = Callable[[Task, str | None], None]


class Worker(NamedTuple):
    """A process at work on a cell, and where its stderr goes."""

    task: Task
    process: subprocess.Popen[str]
    stderr: IO[str]


def one_by_one(tasks: Sequence[Task], done: Done, quiet: bool, begun: float | None = None) -> None:
    """Do the cells in this process.

    Args:
        tasks: The cells.
        done: Called after each with the reason why it failed, or `None`.
        quiet: Show no progress.
        begun: When the time limit began, by `time.monotonic`; now by default.

    Raises:
        Stopped: After a signal or at the time limit.
    """
    begun = time.monotonic() if begun is None else begun
    for task in tasks:
        try:
            work(task, minutes_left(task, begun), quiet)
        except Stopped:
            raise
        except (UserError, WorkFailed) as error:
            done(task, str(error))
        except Exception as error:  # one cell's failure is not the others'
            done(task, f"{type(error).__name__}: {error}")
        else:
            done(task, None)


def at_once(tasks: Sequence[Task], done: Done, jobs: int, lock: int) -> None:
    """Do the cells in workers, `jobs` at a time; arguments as of `one_by_one`.

    Workers stand in process groups of their own, so that Ctrl-C reaches each of them once: from
    here.
    """
    begun, waiting = time.monotonic(), list(tasks)
    stopped: Stopped | None = None
    with _workers() as working, StopWatch() as watch:
        while waiting or working:
            while waiting and len(working) < jobs:
                task = waiting.pop(0)
                try:
                    minutes = minutes_left(task, begun)
                except Stopped as error:
                    stopped, waiting = error, []
                    break
                working.append(_start(task, minutes, lock))
            code = watch.exit_code()
            if code is not None and stopped is None:
                stopped, waiting = Stopped(code, "stopped"), []
                for worker in working:
                    worker.process.send_signal(code - 128)
            for worker in [w for w in working if w.process.poll() is not None]:
                working.remove(worker)
                stop = _finish(worker, done)
                if stop is not None:
                    stopped, waiting = stopped or stop, []
            time.sleep(POLL)
    if stopped is not None:
        raise stopped


def minutes_left(task: Task, begun: float) -> float | None:
    """What is left of the time limit, which is one for all cells."""
    assert task.cell.config is not None
    limit = task.cell.config.train.time_limit
    if limit is None:
        return None
    left = limit - (time.monotonic() - begun) / 60.0
    if left <= 0.0:
        raise Stopped(75, "stopped at the time limit")
    return left


@contextmanager
def _workers() -> Iterator[list[Worker]]:
    """A list of workers, none of which outlives the block."""
    working: list[Worker] = []
    try:
        yield working
    finally:
        for worker in working:
            worker.process.terminate()
        for worker in working:
            worker.process.wait()
            _close(worker)


def _start(task: Task, minutes: float | None, lock: int) -> Worker:
    stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "ladder.ablate.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        start_new_session=True,
        pass_fds=() if os.name == "nt" else (lock,),
    )
    assert process.stdin is not None
    process.stdin.write(to_line(task, minutes))
    process.stdin.flush()
    return Worker(task, process, stderr)


def _finish(worker: Worker, done: Done) -> Stopped | None:
    """Tell how a worker ended; a stop is no failure of the cell."""
    code = worker.process.returncode
    worker.stderr.seek(0)
    lines = worker.stderr.read().strip().splitlines()
    _close(worker)
    if code in (-2, -15):
        code = 128 - code
    if code in STOPS:
        return Stopped(code, lines[-1] if lines else "stopped")
    if code < 0:
        done(worker.task, f"killed by signal {-code}; out of memory?")
    else:
        done(worker.task, (lines[-1] if lines else f"exit code {code}") if code else None)
    return None


def _close(worker: Worker) -> None:
    worker.stderr.close()
    if worker.process.stdin is not None:
        worker.process.stdin.close()
