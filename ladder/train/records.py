"""Lines of metrics.jsonl and units.jsonl that an evaluation makes."""

from __future__ import annotations

from typing import Any

from ladder.train.evaluate import Evaluation
from ladder.train.step import padded


def evaluation_record(step: int, epoch: float, split: str, result: Evaluation) -> dict[str, Any]:
    """What metrics.jsonl holds of an evaluation, in nats per datum.

    Args:
        step: Optimiser steps done.
        epoch: Passes over the training set done.
        split: What the evaluation was on.
        result: The evaluation.

    Returns:
        Plain values by the names of metrics.
    """
    return {
        "step": step,
        "epoch": epoch,
        "val/split": split,
        "val/estimator": result.estimator,
        "val/elbo": result.elbo,
        "val/nll": result.nll,
        "val/kl": sum(result.kl.values()),
        "val/bpd": result.bpd,
        **{f"val/kl_{padded(name)}": kl for name, kl in result.kl.items()},
        **{f"active_units/{padded(name)}": u.active for name, u in result.units.items()},
        **{f"speaking_units/{padded(name)}": u.speaking for name, u in result.units.items()},
    }


def unit_record(step: int, epoch: float, result: Evaluation) -> dict[str, Any]:
    """KL and variance of every unit, for units.jsonl; six digits, since a long run has many."""
    return {
        "step": step,
        "epoch": epoch,
        "kl": {padded(name): _rounded(u.kl) for name, u in result.units.items()},
        "variance": {padded(name): _rounded(u.variance) for name, u in result.units.items()},
    }


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{v:.6g}") for v in values]
