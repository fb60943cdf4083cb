"""The table of a run: what it is, and its last measurement with all that qualifies it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.config import Config, ModelConfig
from ladder.data import Splits
from ladder.diagnostics import ACTIVE, bits_per_layer
from ladder.model import HierarchicalVAE
from ladder.report.history import Record, last_evaluation
from ladder.report.units import counted_layers
from ladder.sampling import layer_names
from ladder.train.doctor import verdict
from ladder.train.evaluate import SEED
from ladder.train.run import ENVIRONMENT


def summary(
    config: Config[ModelConfig],
    model: HierarchicalVAE,
    checkpoint: str,
    data: Splits,
    records: Sequence[Record],
) -> dict[str, str]:
    """Describe a run.

    Args:
        config: Its configuration.
        model: Its model.
        checkpoint: Name of the checkpoint that the model comes from.
        data: Its data.
        records: Lines of metrics.jsonl.

    Returns:
        Text by name, in order.
    """
    names = layer_names(model)
    layers = ", ".join(names) if len(names) <= 8 else f"{names[0]} … {names[-1]} ({len(names)})"
    parameters = sum(p.numel() for p in model.parameters())
    held_out = f"{len(data.validation):,} validation, {len(data.test):,} test"
    return {
        "preset": config.preset or "none",
        "system": config.model.system,
        "layers, top first": layers,
        "parameters": f"{parameters:,}",
        "data": f"{data.name}: {len(data.train):,} train, {held_out}; shape {_shape(config)}",
        "checkpoint": checkpoint,
        **_training(records),
        **_measured(config, data, records),
        **_units(config, data, records),
        "seed": str(config.train.seed),
    }


def environment_rows(run: Path) -> dict[str, str]:
    """Where a run was trained, as far as environment.json says."""
    try:
        content = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    labels = {"device": "device", "torch": "torch", "git_commit": "commit"}
    return {label: str(content[key]) for key, label in labels.items() if content.get(key)}


def _shape(config: Config[ModelConfig]) -> str:
    return " x ".join(map(str, config.model.shape))


def _training(records: Sequence[Record]) -> dict[str, str]:
    if not records:
        return {}
    last = records[-1]
    return {"trained": f"{last['step']:,} steps, {last['epoch']:.3g} epochs"}


def _measured(
    config: Config[ModelConfig], data: Splits, records: Sequence[Record]
) -> dict[str, str]:
    last = last_evaluation(records)
    if last is None:
        return {}
    split = last["val/split"]
    n = len(data.validation if split == "validation" else data.test)
    terms = f"{last['val/nll']:.2f} -log p(x|z) + {last['val/kl']:.2f} KL ({_layers(last)})"
    estimator = f"K = 1 draw, KL {last.get('val/estimator', 'of unknown kind')}"
    where = f"{split} split, n = {n:,}, {estimator}, noise seed {SEED}, step {last['step']:,}"
    return {
        "ELBO": f"{last['val/elbo']:.2f} nats per datum ({where})",
        "-ELBO in nats": terms,
        "-ELBO in bits/dim": f"{last['val/bpd']:.4f}",
    }


def _units(config: Config[ModelConfig], data: Splits, records: Sequence[Record]) -> dict[str, str]:
    last = last_evaluation(records)
    names = counted_layers([last]) if last else []
    if last is None or not names:
        return {}
    shown = ", ".join(f"z{int(n[1:])} {last[f'active_units/{n}']}" for n in reversed(names[-8:]))
    more = "" if len(names) <= 8 else f", … ({len(names)} layers)"
    total = config.train.total_steps(len(data.train))
    return {
        "KL in bits": _bits(config, last),
        "active units": f"{shown}{more} (variance of the posterior mean over {ACTIVE:g})",
        "doctor": verdict(records, config.objective, total),
    }


def _bits(config: Config[ModelConfig], record: Record, most: int = 8) -> str:
    """Bits per datum of each layer and its share, the layers with the most first."""
    kl = {k.removeprefix("val/kl_"): v for k, v in record.items() if k.startswith("val/kl_z")}
    bits = bits_per_layer(kl, math.prod(config.model.shape))
    largest = sorted(bits.items(), key=lambda item: -item[1].bits)[:most]
    shown = ", ".join(f"z{int(n[1:])} {b.bits:.2f} ({b.share:.0%})" for n, b in largest)
    return shown if len(bits) <= most else f"{shown}, … ({len(bits)} layers)"


def _layers(record: dict[str, Any], most: int = 8) -> str:
    prefix = "val/kl_z"
    kl = {int(key.removeprefix(prefix)): v for key, v in record.items() if key.startswith(prefix)}
    if len(kl) > most:
        return f"of {len(kl)} layers"
    return ", ".join(f"z{i} {kl[i]:.2f}" for i in sorted(kl, reverse=True))
