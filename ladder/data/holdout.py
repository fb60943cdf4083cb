"""What is kept from training, and in which order the data come before."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ladder.data.rows import Data
from ladder.errors import UserError

SHARE = 10


def check_enough(n: int, where: str) -> None:
    """Ask for a datum to train on and one to test on.

    Args:
        n: Number of data in all.
        where: The source, as the beginning of a sentence.

    Raises:
        UserError: If there are not enough data for both.
    """
    if n < 2:
        raise UserError(
            f"{where} holds {'only one datum' if n else 'no data'}; "
            "at least two are needed, one to train on and one to test on"
        )


def shuffled(data: Data, seed: int) -> Data:
    """Bring data into the order of NumPy's `RandomState(seed).permutation`.

    Args:
        data: The data, [N, *shape].
        seed: At least 0 and less than 2**32.

    Returns:
        The same data; a copy of what is in memory, and nothing read of what is not.
    """
    # NumPy's old generator, because published splits are drawn by it; its stream is frozen.
    order = np.random.RandomState(seed).permutation(len(data))
    return data[torch.from_numpy(order.astype(np.int64, copy=False))]


def with_test(train: Data, test: Data | None) -> tuple[Data, Data]:
    """Take the last tenth, at least one datum, for testing where a source names no test data."""
    if test is not None:
        return train, test
    n = len(train) - max(1, len(train) // SHARE)
    return train[:n], train[n:]


def hold_out(train: Data, count: int, end: Literal["last", "first"]) -> tuple[Data, Data]:
    """Divide the training data.

    Args:
        train: The training data, [N, *shape].
        count: Data to hold out, which may be 0.
        end: From which end they are taken.

    Returns:
        What is left to train on, and what is held out.

    Raises:
        UserError: If nothing would be left.
    """
    if count >= len(train):
        raise UserError(
            f"data.validation: {count} of {len(train)} training data cannot be held out; "
            f"give at most {len(train) - 1}"
        )
    if end == "first":
        return train[count:], train[:count]
    return train[: len(train) - count], train[len(train) - count :]
