"""Training from the first step, or the last checkpoint, to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder.build import build_model
from ladder.config import Config, ModelConfig
from ladder.data import Data, Splits, load, permutation, place, take
from ladder.errors import UserError, WorkFailed
from ladder.files import write_atomic
from ladder.pretrained import pointed, trained
from ladder.train import checkpoint, run
from ladder.train.doctor import Doctor
from ladder.train.ema import averaged
from ladder.train.evaluate import Evaluation, evaluate
from ladder.train.health import first_offender
from ladder.train.progress import Progress
from ladder.train.records import evaluation_record, unit_record
from ladder.train.schemes import beta_at, weights_at
from ladder.train.skipping import PATIENCE
from ladder.train.state import State, choose_device, new_state
from ladder.train.step import lr_at, padded, train_step
from ladder.train.stop import Stopped, StopWatch

SHOWN = ("train/loss", "train/nll", "train/kl")
FROZEN = 100  # steps left out in a row, after which training is said to stand still
FEW = 100  # steps between two evaluations, at least, unless the configuration says


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


class Setup(NamedTuple):
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
    images: Data
    held_out: Data
    split: str
    device: torch.device
    total: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, a smaller last one included."""
        return math.ceil(len(self.images) / self.config.train.batch_size)

    @property
    def default_evaluate_every(self) -> int:
        """Whole epochs that make at least `FEW` steps."""
        return math.ceil(FEW / self.steps_per_epoch) * self.steps_per_epoch


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
    else:
        run.check_same(out, config)
    setup = set_up(config, out)
    started = resume and pointed(out / "checkpoints", "last") is not None
    first = None if started else _first(setup)
    state = new_state(config, setup.device, first, setup.total)
    _check_last_batch(setup)
    if resume:
        _check_imported(out)
        _resume(setup, state)
    else:
        run.create(out, config, given)
    progress = Progress(state.step, setup.total, quiet)
    if state.step == setup.total:
        progress.note(
            f"{out}: has done its {setup.total} steps already; to go on, raise train.steps or "
            "train.epochs"
        )
    doctor = Doctor(config.objective, setup.total, run.read_metrics(out))
    try:
        with StopWatch(config.train.time_limit) as watch:
            evaluation = _loop(setup, state, doctor, progress, watch)
    finally:
        progress.close()
    return Summary(out, state.step, time.monotonic() - begun, evaluation, setup.split)


def set_up(config: Config[ModelConfig], out: Path) -> Setup:
    """Load the data and count the steps."""
    device = choose_device(config.train.device)
    data: Splits = load(config.data, config.model.shape, config.train.seed)
    split = "validation" if len(data.validation) else "test"
    held_out = data.validation if len(data.validation) else data.test
    setup = Setup(
        config, out, place(data.train, device), place(held_out, device), split, device, 0
    )
    return setup._replace(total=config.train.total_steps(len(data.train)))


def batches(setup: Setup, step: int) -> Iterator[Tensor]:
    """Batches `[B, *shape]` from a step on, for ever; a function of (seed, step) alone."""
    source = _batches(setup, step)
    there = isinstance(setup.images, Tensor) and setup.images.device == setup.device
    return source if there else ahead(source)


def ahead(source: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each gathered while the one before is trained on; of an endless source."""
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, source)
        while True:
            batch = waiting.result()
            waiting = reader.submit(next, source)
            yield batch


def _batches(setup: Setup, step: int) -> Iterator[Tensor]:
    size, n = setup.config.train.batch_size, len(setup.images)
    epoch, skipped = divmod(step, setup.steps_per_epoch)
    while True:
        order = permutation(n, setup.config.train.seed, epoch).to(setup.images.device)
        for index in order.split(size)[skipped:]:
            yield take(setup.images, index, setup.device)
        epoch, skipped = epoch + 1, 0


def _first(setup: Setup) -> Tensor:
    """The first data of the training set, as many as a batch has, in their own order."""
    count = min(setup.config.train.batch_size, len(setup.images))
    index = torch.arange(count, device=setup.images.device)
    return take(setup.images, index, setup.device)


def _check_last_batch(setup: Setup) -> None:
    """Batch norm cannot normalise one number: where it would meet one, say so before the end."""
    size = setup.config.train.batch_size
    if (len(setup.images) % size or size) > 1:
        return
    with torch.device("meta"):
        model = build_model(config=setup.config)
        try:
            model(torch.zeros(1, *setup.config.model.shape))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"train.batch_size: {size} leaves one of {len(setup.images)} data for the last "
                "batch, which batch norm cannot normalise; choose another"
            ) from None


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
    run.truncate_metrics(setup.out, state.step)
    checkpoint.tidy(setup.out / "checkpoints", state.step)
    _mark_best(setup, state)


def _loop(
    setup: Setup, state: State, doctor: Doctor, progress: Progress, watch: StopWatch
) -> Evaluation:
    train, evaluation = setup.config.train, None
    evaluate_every = train.evaluate_every or setup.default_evaluate_every
    source = batches(setup, state.step)
    window = time.monotonic()
    while state.step < setup.total:
        train_step(state, _next(source, setup, state), setup.config)
        progress.advance()
        done = state.step
        last = done == setup.total
        if last or done % train.log_every == 0 or done % setup.steps_per_epoch == 0:
            _log(setup, state, doctor, progress, time.monotonic() - window)
            window = time.monotonic()
        if last or done % evaluate_every == 0:
            evaluation = _evaluate(setup, state)
            _write(setup, state, doctor, progress, evaluation)
            window = time.monotonic()
        stop = watch.exit_code()
        if last or stop is not None or (done % train.checkpoint_every == 0 and _sound(state)):
            _check(setup, state)
            checkpoint.save(setup.out / "checkpoints", state, train.keep)
            run.record(setup.out, setup.config)
        if stop is not None:
            raise Stopped(stop, f"stopped at step {done}; go on with --resume {setup.out}")
    if row := int(state.skipping.row.item()):
        progress.note(f"{setup.out}: of {state.step} steps the last {row} were left out")
    return evaluation or _evaluate(setup, state)


def _sound(state: State) -> bool:
    """Whether the last step was finite; after one that was not, older checkpoints are better."""
    return int(state.skipping.broken.item()) == 0


def _next(source: Iterator[Tensor], setup: Setup, state: State) -> Tensor:
    """The next batch; if it cannot be read, what was learned so far is kept."""
    try:
        return next(source)
    except UserError:
        if state.step:
            _check(setup, state)
            checkpoint.save(setup.out / "checkpoints", state, setup.config.train.keep)
        raise


def _log(setup: Setup, state: State, doctor: Doctor, progress: Progress, seconds: float) -> None:
    """Bring the metrics back, write a line, and stop if a step was not finite."""
    means = state.meter.read()
    _check(setup, state)
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
    doctor.note(record)
    if step % setup.config.train.log_every == 0 or step == setup.total:
        progress.report(step, {n: means[n] for n in SHOWN if n in means})
    state.meter.clear()


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
    x = next(batches(setup, step))
    offender = first_offender(state, x, step, setup.config)
    last = pointed(setup.out / "checkpoints", "last")
    where = f"the last good checkpoint is {last.name}" if last else "no checkpoint was written yet"
    raise WorkFailed(
        f"step {step + 1}: the loss or its gradient is not finite{_for_so_long(state)}; "
        f"the first to go was {offender}; {where}; "
        "lower train.lr or set train.grad_clip"
    )


def _for_so_long(state: State) -> str:
    return f", for {PATIENCE} steps in a row" if state.skipping.on else ""


def _evaluate(setup: Setup, state: State) -> Evaluation:
    _check(setup, state)
    with averaged(state):
        result = evaluate(state.model, setup.held_out, setup.config.train.batch_size)
    if not math.isfinite(result.elbo):
        raise WorkFailed(
            f"step {state.step}: the ELBO on held-out data is not finite; lower train.lr"
        )
    return result


def _write(
    setup: Setup, state: State, doctor: Doctor, progress: Progress, result: Evaluation
) -> None:
    """Write an evaluation down, say what is wrong with a layer, and choose `best`."""
    epoch = state.step / setup.steps_per_epoch
    record = evaluation_record(state.step, epoch, setup.split, result)
    doctor.note(record)
    findings = doctor.news()
    if findings:
        record["doctor"] = [finding._asdict() for finding in findings]
    for finding in findings:
        progress.note(finding.sentence)
    run.append_metrics(setup.out, record)
    run.append_metrics(setup.out, unit_record(state.step, epoch, result), run.UNITS)
    _choose_best(setup, state)


def _choose_best(setup: Setup, state: State) -> None:
    """Keep this step as `best` if it is; only a validation split may choose."""
    if _is_best(setup, state):
        path = checkpoint.save(setup.out / "checkpoints", state, setup.config.train.keep)
        write_atomic(path.parent / "best", path.name)


def _mark_best(setup: Setup, state: State) -> None:
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
