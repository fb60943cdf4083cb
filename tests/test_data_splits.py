"""Which data are trained on, validated on and tested on: order, ends, published splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ladder.config import DataConfig
from ladder.data import Splits, load
from ladder.data.rows import Data


def numbered(n: int) -> np.ndarray:
    """Data that tell which row they are: three bytes, the lowest first."""
    return np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 4)[:, :3]


def rows(part: Data) -> np.ndarray:
    assert isinstance(part, torch.Tensor)
    return part.numpy().astype(np.int64) @ (1, 256, 65536)


def digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def write(folder: Path, train: int, test: int | None = None) -> Path:
    path = folder / "a.npz"
    if test is None:
        np.savez(path, anything=numbered(train))
    else:
        np.savez(path, train=numbered(train), test=numbered(test))
    return path


def read(path: Path, **settings: object) -> Splits:
    return load(DataConfig(name=str(path), **settings), [3])


def test_the_cifar10_split_is_scikit_learns(tmp_path: Path) -> None:
    path = write(tmp_path, 50000, 100)
    splits = read(path, validation=5000, shuffle=11172018, hold_out="first")
    # Of scikit-learn 1.9.1:
    #     train, held_out = sklearn.model_selection.train_test_split(
    #         numpy.arange(50000), test_size=5000, random_state=11172018
    #     )
    assert rows(splits.validation)[:5].tolist() == [38899, 48321, 12222, 16844, 47067]
    assert rows(splits.train)[-3:].tolist() == [29869, 7348, 29029]
    held_out = "a62a2f02ab39756edc27567a7feea80a736cbcf461d6106567afc30e66b154b0"
    trained = "41bfb7d6515495aa7dccb33e7508d8ef7b23d9d8c44d3073385d8198657c5a66"
    assert digest(rows(splits.validation)) == held_out
    assert digest(rows(splits.train)) == trained
    assert np.array_equal(rows(splits.test), np.arange(100))


def test_scikit_learns_rule_at_other_sizes(tmp_path: Path) -> None:
    order = np.random.RandomState(7).permutation(53)
    splits = read(write(tmp_path, 53, 4), validation=11, shuffle=7, hold_out="first")
    assert rows(splits.validation).tolist() == order[:11].tolist()
    assert rows(splits.train).tolist() == order[11:].tolist()


def test_the_imagenet_split_is_the_end_of_the_permutation(tmp_path: Path) -> None:
    splits = read(write(tmp_path, 12000, 10), validation=5000, shuffle=42)
    order = np.random.RandomState(42).permutation(12000)
    assert np.array_equal(rows(splits.train), order[:-5000])
    assert np.array_equal(rows(splits.validation), order[-5000:])


def test_the_ffhq_split_is_drawn_from_all_data(tmp_path: Path) -> None:
    splits = read(write(tmp_path, 70000), shuffle=5)
    # Of `numpy.random.seed(5); numpy.random.permutation(70000)`.
    assert rows(splits.train)[:3].tolist() == [6628, 2777, 7414]
    assert rows(splits.test)[-3:].tolist() == [20463, 18638, 35683]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (63000, 0, 7000)
    parts = np.concatenate((rows(splits.train), rows(splits.test)))
    assert np.array_equal(np.sort(parts), np.arange(70000))


def test_all_three_parts_of_one_array(tmp_path: Path) -> None:
    order = np.random.RandomState(0).permutation(40)
    splits = read(write(tmp_path, 40), shuffle=0, validation=6, hold_out="first")
    assert rows(splits.validation).tolist() == order[:6].tolist()
    assert rows(splits.train).tolist() == order[6:36].tolist()
    assert rows(splits.test).tolist() == order[36:].tolist()


@pytest.mark.parametrize(("end", "held_out"), [("first", slice(3)), ("last", slice(17, 20))])
def test_the_end_that_is_held_out(tmp_path: Path, end: str, held_out: slice) -> None:
    path = write(tmp_path, 20, 5)
    splits = read(path, validation=3, hold_out=end)
    want = np.arange(20)
    assert rows(splits.validation).tolist() == want[held_out].tolist()
    assert rows(splits.train).tolist() == np.delete(want, held_out).tolist()
    nothing = read(path, validation=0, hold_out=end)
    assert rows(nothing.train).tolist() == want.tolist()
    assert len(nothing.validation) == 0


def test_a_folder_without_parts_is_shuffled_as_a_whole(tmp_path: Path) -> None:
    for i in range(25):
        Image.new("L", (2, 2), 10 * i).save(tmp_path / f"{i:02}.png")
    splits = load(DataConfig(name=str(tmp_path), shuffle=3), [1, 2, 2])
    order = 10 * np.random.RandomState(3).permutation(25)
    assert splits.train[:, 0, 0, 0].tolist() == order[:23].tolist()
    assert splits.test[:, 0, 1, 1].tolist() == order[23:].tolist()


def test_named_sets_are_shuffled_but_not_their_test_data() -> None:
    plain = load(DataConfig(name="digits"), [1, 8, 8])
    mixed = load(DataConfig(name="digits", shuffle=1), [1, 8, 8])
    order = torch.from_numpy(np.random.RandomState(1).permutation(1497))
    assert torch.equal(mixed.train, plain.train[order])
    assert torch.equal(mixed.test, plain.test)


def test_the_shuffle_is_not_numpys_global_generator(tmp_path: Path) -> None:
    path = write(tmp_path, 30)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first = read(path, shuffle=9)
    after = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    assert np.array_equal(before, after)
    assert torch.equal(first.train, read(path, shuffle=9).train)
    assert not torch.equal(first.train, read(path, shuffle=10).train)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_seeds_that_numpy_would_refuse(seed: float) -> None:
    with pytest.raises(ValidationError, match="shuffle"):
        DataConfig(name="digits", shuffle=seed)


def test_the_largest_seed_is_taken(tmp_path: Path) -> None:
    splits = read(write(tmp_path, 30), shuffle=2**32 - 1)
    order = np.random.RandomState(2**32 - 1).permutation(30)
    assert rows(splits.train).tolist() + rows(splits.test).tolist() == order.tolist()
