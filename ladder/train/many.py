"""Training several models together to their ends, each with its own run directory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ladder.config import Config, ModelConfig
from ladder.errors import UserError, WorkFailed
from ladder.train.course import Course, after_step, keep
from ladder.train.loop import started
from ladder.train.stop import Stopped, StopWatch
from ladder.train.together import Together


class Job(NamedTuple):
    """A model to train.

    Attributes:
        config: The whole configuration.
        out: Its run directory.
        given: What the user wrote, for config.yaml.
        resume: Go on from the last checkpoint there.
    """

    config: Config[ModelConfig]
    out: Path
    given: str
    resume: bool


def fit_together(
    jobs: Sequence[Job], minutes: float | None = None, quiet: bool = False
) -> dict[Path, str]:
    """Train models of one kind together; each writes what `fit` writes.

    Args:
        jobs: Models of one kind, see `ladder.train.together.kind_of`.
        minutes: Time limit; `None` for none.
        quiet: Show no progress; else that of one of them stands for all.

    Returns:
        Why models failed, by run directory; the others are trained.

    Raises:
        Stopped: After a signal or at the time limit, with a checkpoint of each.
    """
    failed: dict[Path, str] = {}
    groups: dict[int, list[Course]] = defaultdict(list)
    for job in jobs:
        silent = quiet or bool(groups)
        try:
            course = started(job.config, job.out, given=job.given, resume=job.resume, quiet=silent)
        except UserError as error:
            failed[job.out] = str(error)
        else:
            groups[course.state.step].append(course)
    try:
        with StopWatch(minutes) as watch:
            for courses in groups.values():  # a kill may have left some behind
                while live := [c for c in courses if not _ended(c, failed)]:
                    _until_one_ends(live, watch, failed)
    finally:
        for course in sum(groups.values(), list[Course]()):
            course.progress.close()
    return failed


def _ended(course: Course, failed: dict[Path, str]) -> bool:
    return course.state.step == course.setup.total or course.setup.out in failed


def _until_one_ends(courses: list[Course], watch: StopWatch, failed: dict[Path, str]) -> None:
    advance = Together(courses)
    while not any(_ended(course, failed) for course in courses):
        try:
            advance()
        except UserError:  # a batch that cannot be read
            for course in courses:
                keep(course)
            raise
        stop, stopped = watch.exit_code(), None
        for course in courses:
            try:
                after_step(course, stop)
            except WorkFailed as error:
                failed[course.setup.out] = str(error)
            except Stopped as error:  # the others want their checkpoints too
                stopped = error
        if stopped is not None:
            raise stopped
