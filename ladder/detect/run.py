"""From a run directory to the table of what it takes for unfamiliar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder.data import Data, load, take
from ladder.data.sets import drawn
from ladder.detect.sets import default_names, unfamiliar_sets
from ladder.diagnostics import kl_estimator
from ladder.model import HierarchicalVAE
from ladder.ood import OodTable, Tell, ood_table
from ladder.pretrained import from_pretrained
from ladder.sampling import encode
from ladder.train.evaluate import SEED
from ladder.train.measure import check_counts, check_split, for_numbers, read_run, step_of
from ladder.train.run import git_commit
from ladder.train.state import choose_device

SHOWN = 12  # examples of each set


class Found(NamedTuple):
    """A table with what its numbers are of.

    Attributes:
        table: The table.
        stamp: Estimator, data, split, step and commit, as a record keeps them.
        examples: The first data of every set as the model gets them, float32 `[SHOWN, *shape]`
            or fewer, the familiar ones first.
    """

    table: OodTable
    stamp: dict[str, Any]
    examples: dict[str, Tensor]


def detect(
    run: Path,
    against: Sequence[str] = (),
    overrides: Sequence[str] = (),
    split: str = "test",
    samples: int = 0,
    n: int | None = 1000,
    seed: int | None = None,
    tell: Tell | None = None,
) -> Found:
    """Score the data of a run and unfamiliar sets with its last checkpoint.

    Args:
        run: The run directory.
        against: Names of changes or of sets; empty takes the bundled digits and every change that
            fits. Sets are prepared and binarised as the run's data are.
        overrides: Words `key=value`, for instance `data.resize=28`.
        split: Which of the run's data are the familiar ones, and are changed: `train`,
            `validation` or `test`.
        samples: Importance samples K of every bound; 0 draws once.
        n: Only the first n data of each set; `None` takes all.
        seed: Of the noise; `None` takes that of evaluations.
        tell: Called with the name of each unfamiliar set when it is done.

    Returns:
        The table.

    Raises:
        UserError: If there is no run, no checkpoint or no such set, or a set does not fit.
        WorkFailed: If a bound is not finite.
    """
    check_counts("ood", samples, n)
    config, last = read_run("ood", run, overrides)
    data, shape = for_numbers(config.data, split), config.model.shape
    names = list(against) or default_names(data, shape)
    grey = load(data.model_copy(update={"binarize": "none"}), shape, config.train.seed)
    familiar = getattr(drawn(grey, data.binarize, config.train.seed), split)[:n]
    check_split("ood", split, familiar)
    sets = unfamiliar_sets(data, shape, getattr(grey, split), names, n)
    model = from_pretrained(last, str(choose_device(config.train.device)))
    noise = SEED if seed is None else seed
    table = ood_table(model, familiar, sets, samples, n, noise, config.train.batch_size, tell=tell)
    examples = {f"{grey.name} (familiar)": familiar, **sets}
    stamp = {
        "estimator": f"importance-weighted, K={samples}" if samples else "ELBO, 1 sample",
        "kl": "sampled" if samples else _kl(model, familiar),
        "data": grey.name,
        "binarize": config.data.binarize,
        "split": split,
        "step": step_of(run, last),
        "commit": git_commit(),
    }
    return Found(table, stamp, {k: _first(v) for k, v in examples.items()})


def _first(images: Data) -> Tensor:
    return take(images, torch.arange(min(SHOWN, len(images))), torch.device("cpu"))


@torch.no_grad()
def _kl(model: HierarchicalVAE, images: Data) -> str:
    device = next(model.parameters()).device
    return kl_estimator(encode(model, take(images, torch.arange(1), device), seed=0))
