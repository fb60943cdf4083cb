"""The test data of a source that does not name its own."""

from __future__ import annotations

from ladder.errors import UserError

SHARE = 10


def training_rows(n: int, where: str) -> int:
    """Count what is left for training when the last tenth, at least one datum, is for testing.

    Args:
        n: Number of data in all.
        where: The source, as the beginning of a sentence.

    Returns:
        Number of data for training, at least 1.

    Raises:
        UserError: If there are not enough data for both.
    """
    if n < 2:
        raise UserError(
            f"{where} holds {'only one datum' if n else 'no data'}; "
            "at least two are needed, one to train on and one to test on"
        )
    return n - max(1, n // SHARE)
