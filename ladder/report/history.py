"""What metrics.jsonl says about one quantity, as the points of a line."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]

FEWEST_EPOCHS = 3  # a line through fewer epochs says less than the windows inside them


class Line(NamedTuple):
    """A quantity over a run.

    Attributes:
        x: Epochs or steps, increasing.
        y: The quantity, in the unit it was logged in.
    """

    x: list[float]
    y: list[float]


def by_epoch(records: Sequence[Record]) -> bool:
    """Whether the run is long enough for a point per epoch; else its windows are the points."""
    return max((r["epoch"] for r in records), default=0.0) >= FEWEST_EPOCHS


def training_line(records: Sequence[Record], name: str) -> Line:
    """A training metric over the run: by epoch where there are enough, else by step.

    Args:
        records: Lines of metrics.jsonl.
        name: Such as `train/loss`.

    Returns:
        The points; none if the metric was not logged.
    """
    if by_epoch(records):
        return epoch_means(records, name)
    return _points(records, name, "step")


def held_out_line(records: Sequence[Record], name: str, sign: float = 1.0) -> Line:
    """A metric of the evaluations, on the same axis as `training_line`, times `sign`."""
    line = _points(records, name, "epoch" if by_epoch(records) else "step")
    return Line(line.x, [sign * value for value in line.y])


def epoch_means(records: Sequence[Record], name: str) -> Line:
    """Mean of a metric over all data of each epoch.

    A window is a mean over its own `data`, so windows count by those. No window reaches over the
    end of an epoch, since one is written there.

    Args:
        records: Lines of metrics.jsonl.
        name: Such as `train/loss`.

    Returns:
        A point for each epoch at its end; at the last window if the last epoch is not complete.
    """
    groups: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if name in record:
            groups[math.ceil(record["epoch"])].append(record)
    line = Line([], [])
    for _, windows in sorted(groups.items()):
        total = math.fsum(w[name] * w["data"] for w in windows)
        line.x.append(windows[-1]["epoch"])
        line.y.append(total / sum(w["data"] for w in windows))
    return line


def logged_layers(records: Sequence[Record]) -> list[str]:
    """Names of the metrics `kl/z01`, `kl/z02`, ... in these records, the data's side first."""
    names = {key for record in records for key in record if key.startswith("kl/")}
    return sorted(names, key=lambda name: int(name.removeprefix("kl/z")))


def last_evaluation(records: Sequence[Record]) -> Record | None:
    """The newest record of an evaluation, if there is one."""
    return next((r for r in reversed(records) if "val/elbo" in r), None)


def _points(records: Sequence[Record], name: str, axis: str) -> Line:
    having = [r for r in records if name in r]
    return Line([r[axis] for r in having], [r[name] for r in having])
