"""Measuring a run after training, as a record that can be cited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.data import load
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
    if samples < 0 or (n is not None and n < 1):
        raise UserError("evaluate: --samples must be at least 0 and --n at least 1")
    if any(word.startswith(("model.", "model=")) for word in overrides):
        raise UserError("evaluate: the model is the run's; only data and train can be overridden")
    config = run.read_config(out, list(overrides))
    last = trained(out)
    if last is None:
        raise UserError(f"{out}: has no checkpoint yet; train first")
    device = choose_device(config.train.device)
    data = config.data
    if split == "train" and data.binarize == "dynamic":
        # Training draws it in every batch; a number needs one draw.
        data = data.model_copy(update={"binarize": "static"})
    images = getattr(load(data, config.model.shape, config.train.seed), split)[:n]
    if len(images) == 0:
        raise UserError(f"evaluate: the {split} split is empty; set data.validation or another")
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
        "step": int(last.name.removeprefix("step-")) if last != out else None,
        "commit": run.git_commit(),
    }
    with (out / EVALUATIONS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return record
