"""A training under way: what is logged, evaluated and kept after a step.

Of several processes the first one writes; what the others know of a batch is brought to it first.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ladder.batchnorm import alone
from ladder.errors import WorkFailed
from ladder.files import write_atomic
from ladder.pretrained import pointed
from ladder.train import checkpoint, run
from ladder.train.doctor import Doctor
from ladder.train.ema import averaged
from ladder.train.evaluate import SEED, Evaluation, added, evaluate_part
from ladder.train.feed import Setup, batches
from ladder.train.health import first_offender
from ladder.train.progress import Progress
from ladder.train.records import evaluation_record, unit_record
from ladder.train.schemes import beta_at, weights_at
from ladder.train.skipping import PATIENCE
from ladder.train.state import State
from ladder.train.step import lr_at, padded
from ladder.train.stop import Stopped
from ladder.train.world import gathered

SHOWN = ("train/loss", "train/nll", "train/kl")
FROZEN = 100  # steps left out in a row, after which training is said to stand still


@dataclass
class Course:
    """A training under way.

    Attributes:
        setup: What stays the same.
        state: What changes.
        doctor: Finds out what is wrong with a layer.
        progress: Tells a person how far it is.
        window: When the steps of the next line of metrics began.
        evaluation: The last evaluation.
    """

    setup: Setup
    state: State
    doctor: Doctor
    progress: Progress
    window: float = field(default_factory=time.monotonic)
    evaluation: Evaluation | None = None


def after_step(course: Course, stop: int | None = None) -> None:
    """Log, evaluate and keep what is due after a step.

    Args:
        course: The training; changed in place.
        stop: Exit code to stop with after a checkpoint, or `None` to go on.

    Raises:
        WorkFailed: If a loss is not finite, or something cannot be written.
        Stopped: If it is to stop.
    """
    setup, state = course.setup, course.state
    train, done = setup.config.train, state.step
    course.progress.advance()
    last = done == setup.total
    if last or done % train.log_every == 0 or done % setup.steps_per_epoch == 0:
        _log(course)
        course.window = time.monotonic()
    if last or done % (train.evaluate_every or setup.default_evaluate_every) == 0:
        course.evaluation = evaluated(setup, state)
        if setup.world.leads:
            _write(course, course.evaluation)
        course.window = time.monotonic()
    if last or stop is not None or (done % train.checkpoint_every == 0 and _sound(state)):
        keep(course)
    if stop is not None:
        raise Stopped(stop, f"stopped at step {done}; go on with --resume {setup.out}")


def keep(course: Course) -> None:
    """Write a checkpoint, unless training has failed."""
    setup, state = course.setup, course.state
    _check(setup, state)
    state.meter.collect(setup.world)
    if setup.world.leads:
        checkpoint.save(setup.out / "checkpoints", state, setup.config.train.keep)
        run.record(setup.out, setup.config)


def _sound(state: State) -> bool:
    """Whether the last step was finite; after one that was not, older checkpoints are better."""
    return int(state.skipping.broken.item()) == 0


def _log(course: Course) -> None:
    """Bring the metrics back, write a line, and stop if a step was not finite."""
    setup, state = course.setup, course.state
    state.meter.collect(setup.world)
    means = state.meter.read()
    _check(setup, state)
    if setup.world.leads:
        _write_metrics(course, means)
    state.meter.clear()


def _write_metrics(course: Course, means: dict[str, float]) -> None:
    setup, state, progress = course.setup, course.state, course.progress
    seconds = time.monotonic() - course.window
    step, size = state.step, setup.images.shape[1:].numel()
    record: dict[str, Any] = {
        "step": step,
        "epoch": step / setup.steps_per_epoch,
        "data": state.meter.data,
        **means,
        "train/beta": beta_at(setup.config.objective, step - 1).item(),
        **_kl_weights(setup, state, step - 1),
        "train/lr": lr_at(setup.config.train, step - 1, setup.total),
        "train/images_per_s": state.meter.data / max(seconds, 1e-9),
    }
    if "train/elbo" in means:
        record["train/bpd"] = -means["train/elbo"] / (math.log(2.0) * size)
    if state.skipping.on:
        record["train/skipped"] = state.skipping.skipped.item()
        _warn_if_frozen(setup, state, progress)
    run.append_metrics(setup.out, record)
    course.doctor.note(record)
    if step % setup.config.train.log_every == 0 or step == setup.total:
        progress.report(step, {n: means[n] for n in SHOWN if n in means})


def _warn_if_frozen(setup: Setup, state: State, progress: Progress) -> None:
    """Say once that nothing is learned any more."""
    row, threshold = int(state.skipping.row.item()), setup.config.train.skip_norm
    if row >= FROZEN and threshold is not None and not progress.warned:
        progress.warned = True
        progress.note(
            f"step {state.step}: the last {row} steps were all left out; raise train.skip_norm, "
            f"which is {threshold:g}, or give train.skip_relative=10, which follows the norm"
        )


def _kl_weights(setup: Setup, state: State, step: int) -> dict[str, float]:
    """Weight of each layer's KL, before balancing, where it is not `train/beta` for all."""
    weights = weights_at(setup.config.objective, state.schemes, state.multipliers, step)
    if isinstance(weights.beta, Tensor):
        return {}
    return {f"kl_weight/{padded(name)}": v.item() for name, v in weights.beta.items()}


def _check(setup: Setup, state: State) -> None:
    if state.failed.item() == 0:
        return
    step = int(state.healthy.item())
    with alone():  # each process for itself, since one may find it before another
        offender = first_offender(state, next(batches(setup, step)), step, setup.config)
    last = pointed(setup.out / "checkpoints", "last")
    where = f"the last good checkpoint is {last.name}" if last else "no checkpoint was written yet"
    raise WorkFailed(
        f"step {step + 1}: the loss or its gradient is not finite{_for_so_long(state)}; "
        f"the first to go was {offender}; {where}; "
        "lower train.lr or set train.grad_clip"
    )


def _for_so_long(state: State) -> str:
    return f", for {PATIENCE} steps in a row" if state.skipping.on else ""


def evaluated(setup: Setup, state: State) -> Evaluation:
    """Measure the held-out data with the averaged weights; raises WorkFailed if not finite.

    Of several processes each measures its share of the data, with noise of its own.
    """
    _check(setup, state)
    with averaged(state):
        rows = torch.arange(setup.world.rank, len(setup.held_out), setup.world.size)
        at_once, seed = setup.config.train.batch_size, SEED + setup.world.rank
        part = evaluate_part(state.model, setup.held_out, rows, at_once, seed=seed)
    size = setup.held_out.shape[1:].numel()
    result = added(gathered(part, setup.world), 0, size)
    if not math.isfinite(result.elbo):
        raise WorkFailed(
            f"step {state.step}: the ELBO on held-out data is not finite; lower train.lr"
        )
    return result


def _write(course: Course, result: Evaluation) -> None:
    """Write an evaluation down, say what is wrong with a layer, and choose `best`."""
    setup, state, doctor = course.setup, course.state, course.doctor
    epoch = state.step / setup.steps_per_epoch
    record = evaluation_record(state.step, epoch, setup.split, result)
    doctor.note(record)
    findings = doctor.news()
    if findings:
        record["doctor"] = [finding._asdict() for finding in findings]
    for finding in findings:
        course.progress.note(finding.sentence)
    run.append_metrics(setup.out, record)
    run.append_metrics(setup.out, unit_record(state.step, epoch, result), run.UNITS)
    _choose_best(setup, state)


def _choose_best(setup: Setup, state: State) -> None:
    """Keep this step as `best` if it is; only a validation split may choose."""
    if _is_best(setup, state):
        path = checkpoint.save(setup.out / "checkpoints", state, setup.config.train.keep)
        write_atomic(path.parent / "best", path.name)


def mark_best(setup: Setup, state: State) -> None:
    """What a kill between a checkpoint and its mark left undone."""
    last = pointed(setup.out / "checkpoints", "last")
    if last is not None and _is_best(setup, state):
        write_atomic(last.parent / "best", last.name)


def _is_best(setup: Setup, state: State) -> bool:
    if setup.split != "validation":
        return False
    bounds = {
        record["step"]: record["val/elbo"]
        for record in run.read_metrics(setup.out)
        if record.get("val/split") == "validation" and math.isfinite(record["val/elbo"])
    }
    here = bounds.get(state.step)
    return here is not None and here >= max(bounds.values())
