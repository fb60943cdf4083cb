"""What a library complained about, inside a sentence of ours."""

from __future__ import annotations


def quoted(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
