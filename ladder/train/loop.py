"""Training from the first step, or the last checkpoint, to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder.config import Config, ModelConfig
from ladder.data import Splits, load, permutation, place, take
from ladder.errors import UserError, WorkFailed
from ladder.files import write_atomic
from ladder.train import checkpoint, run
from ladder.train.ema import averaged
from ladder.train.evaluate import Evaluation, evaluate
from ladder.train.health import first_offender
from ladder.train.progress import Progress
from ladder.train.state import State, choose_device, new_state
from ladder.train.step import beta_at, lr_at, padded, train_step
from ladder.train.stop import Stopped, StopWatch


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


class Plan(NamedTuple):
    """What stays the same while training.

    Attributes:
        config: The run's configuration.
        out: The run directory.
        images: Training data where batches are gathered, `[N, *shape]`.
        held_out: Data that evaluations use, `[M, *shape]`.
        split: Name of those, `validation` or `test`.
        device: Where to train.
        total: Steps to do.
    """

    config: Config[ModelConfig]
    out: Path
    images: Tensor
    held_out: Tensor
    split: str
    device: torch.device
    total: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, a smaller last one included."""
        return math.ceil(len(self.images) / self.config.train.batch_size)


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
    begun = time.monotonic()
    if not resume:
        run.check_free(out)
    plan = make_plan(config, out)
    state = new_state(config, plan.device)
    if resume:
        _resume(plan, state)
    else:
        run.create(out, config, given)
    progress = Progress(state.step, plan.total, quiet)
    try:
        with StopWatch(config.train.time_limit) as watch:
            evaluation = _loop(plan, state, progress, watch)
    finally:
        progress.close()
    return Summary(out, state.step, time.monotonic() - begun, evaluation, plan.split)


def make_plan(config: Config[ModelConfig], out: Path) -> Plan:
    """Load the data and count the steps."""
    device = choose_device(config.train.device)
    data: Splits = load(config.data, config.model.shape, config.train.seed)
    split = "validation" if len(data.validation) else "test"
    held_out = data.validation if len(data.validation) else data.test
    plan = Plan(config, out, place(data.train, device), place(held_out, device), split, device, 0)
    return plan._replace(total=config.train.total_steps(len(data.train)))


def batches(plan: Plan, step: int) -> Iterator[Tensor]:
    """Batches `[B, *shape]` from a step on, for ever; a function of (seed, step) alone."""
    size, n = plan.config.train.batch_size, len(plan.images)
    epoch, skipped = divmod(step, plan.steps_per_epoch)
    while True:
        order = permutation(n, plan.config.train.seed, epoch).to(plan.images.device)
        for index in order.split(size)[skipped:]:
            yield take(plan.images, index, plan.device)
        epoch, skipped = epoch + 1, 0


def _resume(plan: Plan, state: State) -> None:
    last = checkpoint.pointed(plan.out / "checkpoints", "last")
    if last is not None:
        checkpoint.restore(last, state)
    if state.step > plan.total:
        raise UserError(
            f"{plan.out}: has {state.step} steps already, more than the {plan.total} asked for; "
            "raise train.steps or train.epochs"
        )
    run.truncate_metrics(plan.out, state.step)


def _loop(plan: Plan, state: State, progress: Progress, watch: StopWatch) -> Evaluation:
    train, evaluation = plan.config.train, None
    evaluate_every = train.evaluate_every or plan.steps_per_epoch
    source = batches(plan, state.step)
    window = time.monotonic()
    while state.step < plan.total:
        train_step(state, next(source), plan.config)
        progress.advance()
        done = state.step
        last, stop = done == plan.total, watch.exit_code()
        if last or done % train.log_every == 0 or done % plan.steps_per_epoch == 0:
            _log(plan, state, progress, time.monotonic() - window)
            window = time.monotonic()
        if last or done % evaluate_every == 0:
            evaluation = _evaluate(plan, state)
            window = time.monotonic()
        if last or stop is not None or done % train.checkpoint_every == 0:
            _check(plan, state)
            checkpoint.save(plan.out / "checkpoints", state, train.keep)
        if stop is not None and not last:
            raise Stopped(stop, f"stopped at step {done}; go on with --resume {plan.out}")
    return evaluation or _evaluate(plan, state, write=False)


def _log(plan: Plan, state: State, progress: Progress, seconds: float) -> None:
    """Bring the metrics back, write a line, and stop if a step was not finite."""
    means = state.meter.read()
    _check(plan, state)
    step, size = state.step, plan.images[0].numel()
    record: dict[str, Any] = {
        "step": step,
        "epoch": step / plan.steps_per_epoch,
        "data": state.meter.data,
        **means,
        "train/bpd": -means["train/elbo"] / (math.log(2.0) * size),
        "train/beta": beta_at(plan.config.objective, step - 1).item(),
        "train/lr": lr_at(plan.config.train, step - 1),
        "train/images_per_s": state.meter.data / max(seconds, 1e-9),
    }
    run.append_metrics(plan.out, record)
    if step % plan.config.train.log_every == 0 or step == plan.total:
        progress.report(step, {n: means[n] for n in ("train/loss", "train/nll", "train/kl")})
    state.meter.clear()


def _check(plan: Plan, state: State) -> None:
    if state.failed.item() == 0:
        return
    # Updates stopped at the failed step, so the optimiser has counted only those before it.
    step = int(next(iter(state.optimizer.state.values()))["step"].item())
    x = next(batches(plan, step))
    offender = first_offender(state.model, x, step, plan.config)
    last = checkpoint.pointed(plan.out / "checkpoints", "last")
    where = f"the last good checkpoint is {last.name}" if last else "no checkpoint was written yet"
    raise WorkFailed(
        f"step {step + 1}: the loss is not finite; the first to go was {offender}; {where}; "
        "lower train.lr or set train.grad_clip"
    )


def _evaluate(plan: Plan, state: State, write: bool = True) -> Evaluation:
    with averaged(state):
        result = evaluate(state.model, plan.held_out, plan.config.train.batch_size)
    if write:
        run.append_metrics(plan.out, _record(plan, state, result))
        _choose_best(plan, state, result)
    return result


def _record(plan: Plan, state: State, result: Evaluation) -> dict[str, Any]:
    return {
        "step": state.step,
        "epoch": state.step / plan.steps_per_epoch,
        "val/split": plan.split,
        "val/elbo": result.elbo,
        "val/nll": result.nll,
        "val/kl": sum(result.kl.values()),
        "val/bpd": result.bpd,
        **{f"val/kl_{padded(name)}": kl for name, kl in result.kl.items()},
    }


def _choose_best(plan: Plan, state: State, result: Evaluation) -> None:
    """Point `best` to a checkpoint of this step; only a validation split may choose."""
    if plan.split != "validation":
        return
    earlier = [r["val/elbo"] for r in run.read_metrics(plan.out) if "val/elbo" in r]
    if result.elbo >= max(earlier):
        _check(plan, state)
        path = checkpoint.save(plan.out / "checkpoints", state, plan.config.train.keep)
        write_atomic(path.parent / "best", path.name)
