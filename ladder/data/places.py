"""Where sets with a name lie."""

from __future__ import annotations

import os
from pathlib import Path


def home(root: str | None) -> Path:
    """The folder of named sets: the one given, else $LADDER_DATA, else the user's cache."""
    return Path(root or os.environ.get("LADDER_DATA") or cache()).expanduser()


def cache() -> Path:
    """The user's cache folder of this library."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ladder"
