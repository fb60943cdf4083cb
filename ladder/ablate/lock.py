"""One `ladder ablate` at a time in a folder, its workers included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ladder.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold a folder; the kernel lets go of it when the last process that inherited it ends.

    Args:
        out: The folder.

    Yields:
        A file descriptor for workers to inherit, so that those of a killed command still hold it.

    Raises:
        UserError: If another process holds it.
    """
    with (out / LOCK).open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise UserError(
                f"{out}: another 'ladder ablate' is at work there; wait for it"
            ) from None
        yield file.fileno()
