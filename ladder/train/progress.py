"""Telling a person how far training is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm


class Progress:
    """A bar with rate and time left; without a terminal, a line whenever metrics are read.

    Args:
        step: Step to begin at.
        total: Step to end at.
        quiet: Say nothing.
    """

    def __init__(self, step: int, total: int, quiet: bool = False) -> None:
        self.total, self.quiet, self.warned = total, quiet, False
        self.begun, self.first = time.monotonic(), step
        terminal = sys.stderr.isatty() and not quiet
        self.bar = (
            tqdm(initial=step, total=total, unit="step", dynamic_ncols=True, leave=False)
            if terminal
            else None
        )

    def advance(self) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.update()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show metrics."""
        text = " ".join(f"{name.removeprefix('train/')}={v:.2f}" for name, v in values.items())
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        elif not self.quiet:
            rate = (step - self.first) / max(time.monotonic() - self.begun, 1e-9)
            left = (self.total - step) / rate if rate else 0.0
            self._say(f"step {step}/{self.total} {text} {rate:.1f} step/s {_clock(left)} left")

    def note(self, line: str) -> None:
        """Say a sentence that stays, bar or no bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif not self.quiet:
            self._say(line)

    def _say(self, line: str) -> None:
        try:
            print(line, file=sys.stderr, flush=True)
        except BrokenPipeError:  # nobody listens any more; training is not over for that
            self.quiet = True

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
