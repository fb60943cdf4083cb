"""MNIST, the sets that share its files, and CIFAR-10, through torchvision.

torchvision downloads and unpacks in place, so that a second process may read half a file. Here
that happens in a scratch folder, and finished files are moved to where torchvision expects them.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from http.client import HTTPException
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ladder.data.places import cache, home
from ladder.data.quote import quoted
from ladder.errors import UserError


class Layout(NamedTuple):
    """Where torchvision looks for a set.

    Attributes:
        kept: Folder of the files it reads.
        files: Their names.
        packed: Folder of the archives they come from.
        archives: Names of those.
    """

    kept: Path
    files: Sequence[str]
    packed: Path
    archives: Sequence[str]


class Family(NamedTuple):
    """Sets alike: where one lies below a root, and its images as [N, C, H, W]."""

    layout: Callable[[Any, Path], Layout]
    images: Callable[[Any], Tensor]


def _idx(kind: Any, root: Path) -> Layout:
    raw = root / str(kind.__name__) / "raw"
    archives = [name for name, _ in kind.resources]
    return Layout(raw, [Path(name).stem for name in archives], raw, archives)


def _batches(kind: Any, root: Path) -> Layout:
    files = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    return Layout(root / str(kind.base_folder), files, root, [str(kind.filename)])


def _grey(data: Tensor) -> Tensor:
    return data.unsqueeze(1)


def _colour(data: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 1, 2)))


MNIST_LIKE = Family(_idx, _grey)
CIFAR_LIKE = Family(_batches, _colour)

CLASSES = {
    "mnist": ("MNIST", MNIST_LIKE),
    "fashion_mnist": ("FashionMNIST", MNIST_LIKE),
    "kmnist": ("KMNIST", MNIST_LIKE),
    "cifar10": ("CIFAR10", CIFAR_LIKE),
}

# Seconds without an answer after which a server counts as out of reach.
PATIENCE = 10.0

# What torchvision, the network, a full disk and a damaged file can raise.
FAILURES = (RuntimeError, OSError, EOFError, ValueError, AssertionError, HTTPException)


class Set(NamedTuple):
    """A class of torchvision's, and how its files lie."""

    name: str
    kind: Any
    family: Family

    def layout(self, root: Path) -> Layout:
        """Where the set lies below a root."""
        return self.family.layout(self.kind, root)

    def parts(self, root: Path) -> tuple[Tensor, Tensor]:
        """Training and test images of files that are there."""
        train, test = (self.family.images(self.kind(root, train=p).data) for p in (True, False))
        return train, test


def load(name: str, root: str | None) -> tuple[Tensor, Tensor]:
    """Read a set, unpacking or downloading it if need be.

    Args:
        name: One of `CLASSES`.
        root: Folder that holds, or will hold, `MNIST/raw` and its like, `cifar-10-batches-py`, or
            the archives of those; None takes $LADDER_DATA, then the user's cache folder. A
            read-only folder is read, and what has to be written goes into the cache folder.

    Returns:
        Training and test images, each uint8: [N, 1, 28, 28], or [N, 3, 32, 32] of CIFAR-10.

    Raises:
        UserError: If the files are neither there nor to be had, or torchvision cannot be imported.
    """
    title, family = CLASSES[name]
    wanted = Set(name, getattr(_datasets(), title), family)
    folder = home(root)
    try:
        return _found(wanted, folder) or _unpacked(wanted, folder)
    except FAILURES as error:
        raise UserError(_missing(wanted, folder, error)) from error


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


def _found(wanted: Set, folder: Path) -> tuple[Tensor, Tensor] | None:
    """What was unpacked before; None if it is nowhere, or cut off."""
    for place in (folder, cache()):
        with suppress(*FAILURES):
            return wanted.parts(place)
    return None


def _unpacked(wanted: Set, folder: Path) -> tuple[Tensor, Tensor]:
    there = wanted.layout(folder)
    place = folder if _writable(there.kept) else cache()
    _unpack(wanted, there.packed, place)
    return wanted.parts(place)


def _writable(folder: Path) -> bool:
    """Whether a folder, or the one it would be made in, may be changed."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    # The mode is asked as well, because nothing is forbidden to root: marked is meant.
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def _unpack(wanted: Set, packed: Path, place: Path) -> None:
    """Unpack the archives in `packed`, download the rest, and move all of it into `place`."""
    kept = wanted.layout(place).kept
    with _made(kept), TemporaryDirectory(dir=kept, prefix=".unpacking-") as scratch:
        workshop = wanted.layout(Path(scratch))
        workshop.packed.mkdir(parents=True, exist_ok=True)
        for name in workshop.archives:
            if (packed / name).is_file():
                shutil.copyfile(packed / name, workshop.packed / name)
        with _quiet():
            wanted.kind(scratch, download=True)
        for name in workshop.files:
            # Atomic: whoever unpacks at the same time puts the same bytes there.
            os.replace(workshop.kept / name, kept / name)


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


def _missing(wanted: Set, folder: Path, error: BaseException) -> str:
    reason = str(error).replace("Error downloading", "could not download")
    there = wanted.layout(folder)
    return (
        f"data: '{wanted.name}' is neither complete in {there.kept} nor could it be downloaded "
        f"({' '.join(reason.split())}); put {', '.join(there.archives)} into {there.packed}, give "
        "data.name a .npz file with the arrays 'train' and 'test', "
        "or use data=digits, which works now without a download"
    )
