"""How large a set may be before it stays in its files."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

INFO = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")  # of containers and of jobs
OWN = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes of memory that a program may take now, as far as the system tells."""
    return min(_machine(), _container())


def fits(size: int) -> bool:
    """Whether so many bytes are at most half of the available memory; the rest is for the work."""
    return size <= available() // 2


def _machine() -> int:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = INFO.read_text(encoding="ascii").splitlines()
        # Free memory alone would not do: files that were read once fill it, and give way.
        return 1024 * int(next(line.split()[1] for line in lines if "MemAvailable" in line))
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return sys.maxsize


def _container() -> int:
    """What the groups of this process, one within the other, leave to it."""
    own = ""
    with suppress(OSError):
        own = OWN.read_text(encoding="utf-8").rpartition("::")[2].strip().strip("/")
    folder = GROUPS / own
    return min(_left(f) for f in (folder, *folder.parents) if f == GROUPS or GROUPS in f.parents)


def _left(folder: Path) -> int:
    with suppress(OSError, ValueError):  # no file outside, the word `max` without a limit
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
        )
        # Files that were read once give way.
        return limit - used + int(stat.get("inactive_file", 0))
    return sys.maxsize
