"""Stopping between two steps: on a signal, or at a time limit."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Stopped(Exception):
    """Training stopped early with a checkpoint.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM, 75 at the time limit.
    """

    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class StopWatch:
    """Listens, inside a `with` block, for reasons to stop.

    Args:
        minutes: Time limit; `None` for none.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self.signal: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> StopWatch:
        # Only the main thread may listen; elsewhere the caller's own handlers stay.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None is a handler that Python did not install: leave it to whoever did.
                self.previous[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # A second one is impatience: let it through.
        signal.signal(number, self.previous[number])

    def exit_code(self) -> int | None:
        """What the process should exit with, or `None` to go on."""
        if self.signal is not None:
            return 128 + self.signal
        late = self.deadline is not None and time.monotonic() > self.deadline
        return 75 if late else None
