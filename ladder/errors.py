"""The two kinds of failure a user meets, and the nearest right word.

`UserError` is a mistake in what was asked (command line exit code 2); `WorkFailed` is work that
could not go on (exit code 1). Both carry one sentence: where, what was wrong, what would be right.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What was asked for cannot be: one sentence that says what would be right."""


class SaidByTheFirst(UserError):
    """A mistake that the first of several processes says for all of them."""


class WorkFailed(RuntimeError):
    """The work itself failed on the way: one sentence that says where and why."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """End of a sentence that names the nearest right words.

    Args:
        word: What the user wrote.
        choices: What would have been right.

    Returns:
        `"; did you mean 'x'?"`, or the whole list if nothing is near, or `""` without choices.
    """
    choices = sorted(choices)
    near = get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(choices)}" if choices else ""
