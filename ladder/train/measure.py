"""Measuring a run after training, as a record that can be cited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.config import Config, DataConfig, ModelConfig
from ladder.data import Data, load
from ladder.errors import UserError
from ladder.pretrained import from_pretrained, trained
from ladder.train import run
from ladder.train.evaluate import SEED, evaluate
from ladder.train.state import choose_device

EVALUATIONS = "evaluations.jsonl"


def measure(
    out: Path,
    overrides: Sequence[str] = (),
    split: str = "test",
    samples: int = 0,
    n: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Evaluate the last checkpoint of a run and add the record to `evaluations.jsonl`.

    Args:
        out: The run directory.
        overrides: Words `key=value`, for instance other data.
        split: `train`, `validation` or `test`.
        samples: Importance samples K; 0 measures only the ELBO.
        n: Only the first n data; `None` takes all.
        seed: Of the evaluation's noise.

    Returns:
        The numbers with estimator, K, n, split, seed, step and commit, in nats per datum.

    Raises:
        UserError: If there is no checkpoint, or the data do not fit.
    """
    check_counts("evaluate", samples, n)
    config, last = read_run("evaluate", out, overrides)
    device = choose_device(config.train.device)
    data = for_numbers(config.data, split)
    images = getattr(load(data, config.model.shape, config.train.seed), split)[:n]
    check_split("evaluate", split, images)
    model = from_pretrained(last, str(device))
    noise = SEED if seed is None else seed
    result = evaluate(model, images, config.train.batch_size, samples, noise)
    record = {
        "elbo": result.elbo,
        "nll": result.nll,
        **{f"kl_{name}": kl for name, kl in result.kl.items()},
        **({f"iw{samples}": result.iw} if samples else {}),
        "bpd": result.bpd,
        "estimator": f"importance-weighted, K={samples}" if samples else "ELBO, 1 sample",
        "kl": result.estimator,
        "data": config.data.name,
        "split": split,
        "n": result.n,
        "seed": noise,
        "step": step_of(out, last),
        "commit": run.git_commit(),
    }
    with (out / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record


def check_counts(verb: str, samples: int, n: int | None) -> None:
    """Refuse fewer than no samples and less than one datum, in the name of a verb."""
    if samples < 0 or (n is not None and n < 1):
        raise UserError(f"{verb}: --samples must be at least 0 and --n at least 1")


def read_run(verb: str, out: Path, overrides: Sequence[str]) -> tuple[Config[ModelConfig], Path]:
    """Find what a run has trained.

    Args:
        verb: Who asks, for the sentences.
        out: The run directory.
        overrides: Words `key=value` for `data` and `train`.

    Returns:
        The configuration with the words laid over it, and where the weights are.

    Raises:
        UserError: If there is no run or no checkpoint, or a word is about the model.
    """
    if any(word.startswith(("model.", "model=")) for word in overrides):
        raise UserError(f"{verb}: the model is the run's; only data and train can be overridden")
    config = run.read_config(out, list(overrides))
    last = trained(out)
    if last is None:
        raise UserError(f"{out}: has no checkpoint yet; train first")
    return config, last


def for_numbers(data: DataConfig, split: str) -> DataConfig:
    """The data drawn once: training draws in every batch, but a number needs one draw."""
    dynamic = split == "train" and data.binarize == "dynamic"
    return data.model_copy(update={"binarize": "static"}) if dynamic else data


def check_split(verb: str, split: str, images: Data) -> None:
    """Refuse a split without data, in the name of a verb."""
    if len(images) == 0:
        raise UserError(f"{verb}: the {split} split is empty; set data.validation or another")


def step_of(out: Path, last: Path) -> int | None:
    """The step of a run's checkpoint; None of weights that came from elsewhere."""
    return int(last.name.removeprefix("step-")) if last != out else None
