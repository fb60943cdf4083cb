"""Training from the first step, or the last checkpoint, to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ladder.config import Config, ModelConfig
from ladder.errors import UserError
from ladder.pretrained import pointed, trained
from ladder.train import checkpoint, run
from ladder.train.course import Course, after_step, evaluated, keep, mark_best
from ladder.train.device import choose_device
from ladder.train.doctor import Doctor
from ladder.train.evaluate import Evaluation
from ladder.train.feed import Setup as Setup
from ladder.train.feed import batches as batches
from ladder.train.feed import check_last_batch, first_data
from ladder.train.feed import set_up as set_up
from ladder.train.progress import Progress
from ladder.train.replayed import Replayed, wants_graph
from ladder.train.state import State, new_state
from ladder.train.step import train_step
from ladder.train.stop import StopWatch
from ladder.train.world import Consensus, World, agreed, found, joined, led, left_alone


class Summary(NamedTuple):
    """What a finished run comes to.

    Attributes:
        run: The run directory.
        steps: Optimiser steps done.
        seconds: Wall time of this call.
        evaluation: The last evaluation.
        split: What it was on, `validation` or `test`.
    """

    run: Path
    steps: int
    seconds: float
    evaluation: Evaluation
    split: str


def fit(
    config: Config[ModelConfig],
    out: Path,
    *,
    given: str = "",
    resume: bool = False,
    quiet: bool = False,
) -> Summary:
    """Train, evaluate and checkpoint as the configuration says.

    Args:
        config: The whole configuration.
        out: Run directory; new or empty, unless resuming.
        given: What the user wrote, for config.yaml.
        resume: Go on from the last checkpoint in `out`; ends bit for bit as if never stopped.
        quiet: Say nothing on stderr.

    Returns:
        Where the run is and its last evaluation.

    Raises:
        UserError: If data, device or directory do not fit; nothing is written then.
        WorkFailed: If a loss is not finite, or a checkpoint cannot be written.
        Stopped: After a signal or at the time limit, with a checkpoint.
    """
    begun, world = time.monotonic(), found()
    device = choose_device(config.train.device, world.local if world.size > 1 else None)
    with joined(world, device):
        # What one process finds on the disk depends on how far the first one has come.
        out, resume = agreed((out, resume), world)
        course = started(config, out, given=given, resume=resume, quiet=quiet, world=world)
        try:
            with StopWatch(config.train.time_limit) as watch:
                evaluation = _loop(course, watch)
        except RuntimeError as error:
            raise left_alone(error, course.state.step, world) from None
        finally:
            course.progress.close()
    steps, split = course.state.step, course.setup.split
    return Summary(out, steps, time.monotonic() - begun, evaluation, split)


def started(
    config: Config[ModelConfig],
    out: Path,
    *,
    given: str = "",
    resume: bool = False,
    quiet: bool = False,
    world: World = World(),  # noqa: B008
) -> Course:
    """Build or restore everything that a training needs, up to its first step.

    Args:
        config: The whole configuration.
        out: Run directory; arguments as of `fit`.
        given: What the user wrote.
        resume: Go on from the last checkpoint.
        quiet: Say nothing on stderr.
        world: The processes that train together, which have joined.

    Returns:
        The training.

    Raises:
        UserError: If data, device or directory do not fit; nothing is written then.
    """
    if resume:
        run.check_same(out, config)
    else:
        led(lambda: run.check_free(out), world)
    setup = set_up(config, out, world)
    begun = resume and pointed(out / "checkpoints", "last") is not None
    first = None if begun else first_data(setup)
    state = new_state(config, setup.device, first, setup.total, world)
    check_last_batch(setup)
    if resume:
        _check_imported(out)
        _resume(setup, state)
    else:
        led(lambda: run.create(out, config, given), world)
    progress = Progress(state.step, setup.total, quiet or not world.leads)
    if state.step == setup.total:
        progress.note(
            f"{out}: has done its {setup.total} steps already; to go on, raise train.steps or "
            "train.epochs"
        )
    doctor = Doctor(config.objective, setup.total, run.read_metrics(out))
    return Course(setup, state, doctor, progress)


def _check_imported(out: Path) -> None:
    if pointed(out / "checkpoints", "last") is None and trained(out) is not None:
        raise UserError(
            f"{out}: holds imported weights without their optimiser, so there is no training to "
            "go on with; import them with --optimizer"
        )


def _resume(setup: Setup, state: State) -> None:
    last = pointed(setup.out / "checkpoints", "last")
    if last is not None:
        checkpoint.restore(last, state)
    if state.step > setup.total:
        raise UserError(
            f"{setup.out}: has {state.step} steps already, more than the {setup.total} asked for; "
            "raise train.steps or train.epochs"
        )
    if setup.world.leads:
        run.truncate_metrics(setup.out, state.step)
        checkpoint.tidy(setup.out / "checkpoints", state.step)
        mark_best(setup, state)


def _loop(course: Course, watch: StopWatch) -> Evaluation:
    setup, state = course.setup, course.state
    consensus = Consensus(setup.world)
    advance = stepper(course)
    while state.step < setup.total:
        shards = state.accumulate
        advance()
        if state.accumulate > shards:
            course.progress.note(
                f"step {state.step}: memory ran out, so from here on a batch is taken in "
                f"{state.accumulate} parts, whose gradients add up"
            )
        after_step(course, consensus.of(watch.exit_code()))
    if row := int(state.skipping.row.item()):
        course.progress.note(f"{setup.out}: of {state.step} steps the last {row} were left out")
    return course.evaluation or evaluated(setup, state)


def stepper(course: Course) -> Callable[[], None]:
    """What does the next step of a training, and those after it."""
    setup, state = course.setup, course.state
    if wants_graph(setup, state):
        return Replayed(setup, state, course.progress.note)
    source = batches(setup, state.step)

    def advance() -> None:
        x = _next(source, course)
        train_step(state, x, setup.config, setup.data_at(state.step))

    return advance


def _next(source: Iterator[Tensor], course: Course) -> Tensor:
    """The next batch; if it cannot be read, what was learned so far is kept."""
    try:
        return next(source)
    except UserError:
        if course.state.step and course.setup.world.size == 1:
            keep(course)
        raise
