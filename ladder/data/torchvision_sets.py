"""MNIST and the sets that share its files, through torchvision.

torchvision downloads and unpacks in place, so that a second process may read half a file. Here
that happens in a scratch folder, and finished files are moved to where torchvision expects them.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ladder.data.quote import quoted
from ladder.errors import UserError

CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}

# Seconds without an answer after which a server counts as out of reach.
PATIENCE = 10.0

# What torchvision, the network, a full disk and a damaged file can raise.
FAILURES = (RuntimeError, OSError, EOFError, ValueError, AssertionError, HTTPException)


def load(name: str, root: str | None) -> tuple[Tensor, Tensor]:
    """Read a set, unpacking or downloading it if need be.

    Args:
        name: One of `CLASSES`.
        root: Folder that holds, or will hold, `MNIST/raw` and its like; None takes $LADDER_DATA,
            then the user's cache folder. A read-only folder is read, and what has to be written
            goes into the cache folder.

    Returns:
        Training and test images, each uint8 [N, 1, 28, 28].

    Raises:
        UserError: If the files are neither there nor to be had, or torchvision cannot be imported.
    """
    kind = getattr(_datasets(), CLASSES[name])
    folder = Path(root or os.environ.get("LADDER_DATA") or _cache()).expanduser()
    try:
        return _found(kind, folder) or _unpacked(kind, folder)
    except FAILURES as error:
        raise UserError(_missing(name, kind, folder, error)) from error


def _datasets() -> Any:
    # Imported here, so that a torchvision built for another torch hinders nothing else.
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            "data: the installed torchvision does not match the installed torch "
            f"({quoted(error)}); reinstall both together, "
            "or use data=digits, which needs no torchvision"
        ) from error
    return datasets


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ladder"


def _archives(kind: Any) -> list[str]:
    return [name for name, _ in kind.resources]


def _raw(kind: Any, folder: Path) -> Path:
    return folder / str(kind.__name__) / "raw"


def _parts(kind: Any, place: Path) -> tuple[Tensor, Tensor]:
    train, test = (kind(place, train=part).data.unsqueeze(1) for part in (True, False))
    return train, test


def _found(kind: Any, folder: Path) -> tuple[Tensor, Tensor] | None:
    """What was unpacked before; None if it is nowhere, or cut off."""
    for place in (folder, _cache()):
        with suppress(*FAILURES):
            return _parts(kind, place)
    return None


def _unpacked(kind: Any, folder: Path) -> tuple[Tensor, Tensor]:
    place = folder if _writable(_raw(kind, folder)) else _cache()
    _unpack(kind, _raw(kind, folder), place)
    return _parts(kind, place)


def _writable(folder: Path) -> bool:
    """Whether a folder, or the one it would be made in, may be changed."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    # The mode is asked as well, because nothing is forbidden to root: marked is meant.
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def _unpack(kind: Any, archives: Path, place: Path) -> None:
    """Unpack what lies in `archives`, download the rest, and move all of it into `place`."""
    raw = _raw(kind, place)
    with _made(raw), TemporaryDirectory(dir=raw, prefix=".unpacking-") as scratch:
        workshop = _raw(kind, Path(scratch))
        workshop.mkdir(parents=True)
        for name in _archives(kind):
            if (archives / name).is_file():
                shutil.copyfile(archives / name, workshop / name)
        with _quiet():
            kind(scratch, download=True)
        for name in _archives(kind):
            # Atomic: whoever unpacks at the same time puts the same bytes there.
            os.replace(workshop / Path(name).stem, raw / Path(name).stem)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; if the block fails, take away again what was made and is still empty."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for made in new:
                made.rmdir()
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and an end to waiting for a network that is not there."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _missing(name: str, kind: Any, folder: Path, error: BaseException) -> str:
    reason = str(error).replace("Error downloading", "could not download")
    return (
        f"data: '{name}' is neither complete in {_raw(kind, folder)} nor could it be downloaded "
        f"({' '.join(reason.split())}); put {', '.join(_archives(kind))} there, "
        "or use data=digits, which works now without a download"
    )
