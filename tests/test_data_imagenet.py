"""ImageNet at 32 x 32 and 64 x 64, in the two kinds of files it comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ladder.config import DataConfig
from ladder.data import Splits, arrays, load, memory
from ladder.data.rows import Rows
from ladder.errors import UserError

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def read(root: Path, side: int = 32, **settings: object) -> Splits:
    config = DataConfig(name=f"imagenet{side}", root=str(root), **settings)
    return load(config, [3, side, side])


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LADDER_DATA", raising=False)


def write_arrays(root: Path, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The files of the release; what they hold as [N, C, H, W]."""
    root.mkdir(parents=True, exist_ok=True)
    parts = noise(12, side, side, 3), noise(5, side, side, 3)
    for name, part in zip(("train", "valid"), parts, strict=True):
        np.save(root / f"imagenet{side}-{name}.npy", part)
    train, test = (part.transpose(0, 3, 1, 2) for part in parts)
    return train, test


def write_batches(root: Path, train: list[str], test: str, side: int = 32) -> np.ndarray:
    """Ten files in given folders, of 1 to 10 images each; what they hold as [N, C, H, W]."""
    images = noise(55, 3, side, side)
    for i, part in enumerate(np.split(images, np.cumsum(range(1, 10)))):
        folder = root / train[i * len(train) // 10]
        folder.mkdir(parents=True, exist_ok=True)
        labels = np.arange(len(part)) + 1
        data = part.reshape(len(part), -1)
        np.savez(folder / f"train_data_batch_{i + 1}.npz", data=data, labels=labels, mean=data[0])
    (root / test).mkdir(parents=True)
    data = images[:4].reshape(4, -1)
    np.savez(root / test / "val_data.npz", data=data, labels=np.arange(4))
    return images


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_files_of_the_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, side: int, mapped: bool
) -> None:
    if mapped:
        monkeypatch.setattr(arrays, "MAPPED", 12 * side * side * 3)  # the training file alone
    train, test = write_arrays(tmp_path, side)
    splits = read(tmp_path, side, shuffle=42, validation=3)
    assert splits.name == f"imagenet{side}"
    assert isinstance(splits.train, Rows) == mapped
    assert not isinstance(splits.test, Rows)
    order = np.random.RandomState(42).permutation(12)
    for part, want in ((splits.train, train[order[:9]]), (splits.validation, train[order[9:]])):
        assert np.array_equal(np.stack([image.numpy() for image in part]), want)
    assert np.array_equal(splits.test.numpy(), test)


@pytest.mark.parametrize(
    ("side", "train", "test"),
    [
        (32, ["Imagenet32_train_npz"], "Imagenet32_val_npz"),
        (32, ["Imagenet32_train"], "Imagenet32_val"),
        (64, ["Imagenet64_train_part1_npz", "Imagenet64_train_part2_npz"], "Imagenet64_val_npz"),
    ],
)
def test_the_folders_of_image_net_org(
    tmp_path: Path, side: int, train: list[str], test: str
) -> None:
    images = write_batches(tmp_path, train, test, side)
    splits = read(tmp_path, side)
    assert np.array_equal(splits.train.numpy(), images)  # the tenth file is the last
    assert np.array_equal(splits.test.numpy(), images[:4])


def test_the_files_of_the_release_come_first(tmp_path: Path) -> None:
    write_batches(tmp_path, ["Imagenet32_train_npz"], "Imagenet32_val_npz")
    train, _ = write_arrays(tmp_path)
    assert np.array_equal(read(tmp_path).train.numpy(), train)


def test_the_places_they_are_looked_for_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = DataConfig(name="imagenet32")
    cached, _ = write_arrays(tmp_path / "cache" / "ladder")
    assert np.array_equal(load(config, [3, 32, 32]).train.numpy(), cached)
    monkeypatch.setenv("LADDER_DATA", str(tmp_path / "data"))
    assert np.array_equal(load(config, [3, 32, 32]).train.numpy(), cached)
    ours, _ = write_arrays(tmp_path / "data")
    assert np.array_equal(load(config, [3, 32, 32]).train.numpy(), ours)
    given, _ = write_arrays(tmp_path / "given")
    assert np.array_equal(read(tmp_path / "given").train.numpy(), given)


@pytest.mark.parametrize("side", [32, 64])
def test_files_that_are_nowhere(tmp_path: Path, side: int) -> None:
    write_arrays(tmp_path, 96 - side)  # those of the other size do not help
    np.save(tmp_path / f"imagenet{side}-train.npy", noise(4, side, side, 3))  # nor does a half
    with pytest.raises(UserError) as caught:
        read(tmp_path, side)
    sentence = str(caught.value)
    assert sentence.startswith(f"data: 'imagenet{side}' is not in {tmp_path} and cannot be down")
    assert f"put imagenet{side}-train.npy and imagenet{side}-valid.npy" in sentence
    assert f"(uint8 [N,{side},{side},3])" in sentence
    assert f"Imagenet{side}_train_npz and Imagenet{side}_val_npz" in sentence
    assert "\n" not in sentence


def test_training_files_that_are_missing(tmp_path: Path) -> None:
    write_batches(tmp_path, ["Imagenet32_train_npz"], "Imagenet32_val_npz")
    for i in (2, 10):
        (tmp_path / "Imagenet32_train_npz" / f"train_data_batch_{i}.npz").unlink()
    with pytest.raises(
        UserError,
        match=r"only 8 of the 10 .*put train_data_batch_2\.npz, train_data_batch_10\.npz",
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"data": noise(3, 12288), "labels": np.arange(3)}, r"should hold uint8 \[3,3072\]"),
        ({"data": noise(4, 3072), "labels": np.arange(3)}, r"uint8 \[4, 3072\]; it should hold"),
        ({"data": np.zeros((3, 3072)), "labels": np.arange(3)}, "'data' of float64"),
        ({"images": noise(3, 3072)}, "holds 'images'; a file of image-net.org holds 'data'"),
        (None, "cannot be read as a NumPy file"),
    ],
)
def test_other_files_in_its_folders(tmp_path: Path, content: dict | None, sentence: str) -> None:
    write_batches(tmp_path, ["Imagenet32_train_npz"], "Imagenet32_val_npz")
    path = tmp_path / "Imagenet32_train_npz" / "train_data_batch_7.npz"
    if content is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=rf"batch_7\.npz .*{sentence}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (noise(4, 64, 64, 3), r"uint8 \[4, 3, 64, 64\]"),
        (RNG.random((4, 32, 32, 3)), r"float32 \[4, 3, 32, 32\]"),
        (noise(4, 3072), r"uint8 \[4, 3072\]"),
    ],
)
def test_arrays_of_something_else(tmp_path: Path, content: np.ndarray, found: str) -> None:
    write_arrays(tmp_path)
    np.save(tmp_path / "imagenet32-valid.npy", content)
    with pytest.raises(
        UserError, match=rf"valid\.npy holds .*{found}; it should hold uint8 \[N,32,32,3\]"
    ):
        read(tmp_path)


def test_more_than_the_memory_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_batches(tmp_path, ["Imagenet32_train_npz"], "Imagenet32_val_npz")
    monkeypatch.setattr(memory, "available", lambda: 2 * 55 * 3072 - 1)
    with pytest.raises(
        UserError, match=r"Imagenet32_train_npz take .*save .*imagenet32-train\.np"
    ):
        read(tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 2 * 55 * 3072)
    assert len(read(tmp_path).train) == 55
