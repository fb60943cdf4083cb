"""A finished run in a few lines, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladder.config import Config, ModelConfig
from ladder.train.loop import Summary


def summary_text(config: Config[ModelConfig], summary: Summary) -> str:
    """Bounds of the last evaluation, and where the pictures are."""
    result = summary.evaluation
    kl = "  ".join(f"{name} {value:.2f}" for name, value in result.kl.items())
    name = config.preset or config.model.system
    return "\n".join(
        [
            "",
            f"{name} on {config.data.name}: {summary.steps} steps in {summary.seconds:.0f} s",
            f"  ELBO      {result.elbo:9.2f} nats   ({summary.split}, n={result.n},"
            " 1 sample each)",
            f"  log p(x|z) {-result.nll:8.2f} nats",
            f"  KL        {sum(result.kl.values()):9.2f} nats   ({kl})",
            f"  pictures  {summary.run / 'samples'}",
            f"  report    {summary.run / 'report.html'}",
            "",
        ]
    )


def summary_json(summary: Summary, pictures: Sequence[Path]) -> dict[str, Any]:
    """The same for a program: plain values by name, and the files that were made."""
    return {
        "run": str(summary.run),
        "steps": summary.steps,
        "seconds": summary.seconds,
        "split": summary.split,
        **{k: v for k, v in summary.evaluation._asdict().items() if k != "units"},
        "files": [str(path) for path in pictures],
    }
