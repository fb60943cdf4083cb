"""ImageNet at 32 x 32 or 64 x 64: files that have to be fetched by hand.

Two kinds are read. The release of VD-VAE uses `imagenet32-train.npy` and `imagenet32-valid.npy`,
uint8 [N, 32, 32, 3]; image-net.org hands out folders of .npz files after a registration. They were
made smaller by different filters and order their images differently, so results and splits of the
one are not those of the other.

References:
    Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016),
    https://arxiv.org/abs/1601.06759
    A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets (Chrabaszcz,
    Loshchilov, Hutter, 2017), https://arxiv.org/abs/1707.08819
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ladder.data import arrays, memory
from ladder.data.places import cache, home
from ladder.data.rows import Data
from ladder.errors import UserError

SIDES = {"imagenet32": 32, "imagenet64": 64}
BATCHES = 10


def load(name: str, root: str | None) -> tuple[Data, Data]:
    """Find the files of a set.

    Args:
        name: One of `SIDES`.
        root: Folder that holds the files; None takes $LADDER_DATA, then the user's cache folder.
            Where there are both kinds of files, the .npy files are taken.

    Returns:
        Training images, and the validation images of the challenge to test on, each uint8
        [N, 3, side, side].

    Raises:
        UserError: If there are no files, not all, or others than they should be.
    """
    for folder in (home(root), cache()):
        pair = [folder / f"{name}-{part}.npy" for part in ("train", "valid")]
        if all(path.is_file() for path in pair):
            train, test = (_array(path, SIDES[name]) for path in pair)
            return train, test
        train_files, test_files = _batches(folder, SIDES[name])
        if train_files and test_files:
            return _joined(train_files, SIDES[name]), _joined(test_files, SIDES[name])
    raise UserError(_missing(name, home(root)))


def _missing(name: str, folder: Path) -> str:
    side = SIDES[name]
    return (
        f"data: '{name}' is not in {folder} and cannot be downloaded without a registration at "
        f"image-net.org; put {name}-train.npy and {name}-valid.npy (uint8 [N,{side},{side},3]) "
        f"there, or its folders Imagenet{side}_train_npz and Imagenet{side}_val_npz"
    )


def _array(path: Path, side: int) -> Data:
    images, _ = arrays.load(path, (3, side, side))
    if images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
        raise UserError(
            f"data: {path} holds {images.dtype} {list(images.shape)}; "
            f"it should hold uint8 [N,{side},{side},3]"
        )
    return images


def _batches(folder: Path, side: int) -> tuple[list[Path], list[Path]]:
    """The ten files to train on and the one to test on; none where there is no such folder."""
    # With or without `_npz`, and the larger set comes in two parts.
    train = {p.name: p for p in folder.glob(f"Imagenet{side}_train*/train_data_batch_*.npz")}
    test = sorted(folder.glob(f"Imagenet{side}_val*/val_data.npz"))[:1]
    names = [f"train_data_batch_{i}.npz" for i in range(1, BATCHES + 1)]
    absent = [name for name in names if name not in train]
    if absent and train:
        raise UserError(
            f"data: {folder} holds only {len(train)} of the {BATCHES} training files of "
            f"Imagenet{side}; put {', '.join(absent)} there as well"
        )
    return [train[name] for name in names if train], test


def _joined(paths: Sequence[Path], side: int) -> Tensor:
    """The images of some files, one after the other; room is made once, for they are large."""
    counts = [len(_member(path, "labels")) for path in paths]
    datum = (3, side, side)
    size = sum(counts) * 3 * side * side
    if not memory.fits(size):
        raise UserError(
            f"data: the images of {paths[0].parent} take {size / 2**30:.1f} GiB, more than half "
            "of the free memory; save them as one .npy file, which is read as needed: "
            f"imagenet{side}-train.npy, uint8 [N,{side},{side},3]"
        )
    images = torch.empty((sum(counts), *datum), dtype=torch.uint8)
    for path, target in zip(paths, images.split(counts), strict=True):
        data = _member(path, "data")
        if data.dtype != np.uint8 or data.shape != (len(target), 3 * side * side):
            raise UserError(
                f"data: {path} holds 'data' of {data.dtype} {list(data.shape)}; "
                f"it should hold uint8 [{len(target)},{3 * side * side}], one row for each label"
            )
        target.copy_(torch.from_numpy(data).view(-1, *datum))
    return images


def _member(path: Path, name: str) -> np.ndarray:
    def choose(found: list[str]) -> list[str]:
        if name in found:
            return [name]
        raise UserError(
            f"data: {path} holds {', '.join(map(repr, found)) or 'no arrays'}; "
            "a file of image-net.org holds 'data' and 'labels'"
        )

    return arrays.members(path, choose)[0]
