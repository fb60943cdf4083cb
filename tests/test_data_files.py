"""Folders of images and NumPy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_images
from PIL import Image

from ladder.config import DataConfig
from ladder.data import Splits, load
from ladder.errors import UserError

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def read(path: Path, shape: list[int], **settings: object) -> Splits:
    return load(DataConfig(name=str(path), **settings), shape)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# Arrays


def test_npz_with_train_and_test(tmp_path: Path) -> None:
    train, test = noise(9, 8, 6, 3), noise(4, 8, 6, 3)
    splits = read(save(tmp_path / "a.npz", test=test, train=train), [3, 8, 6])
    assert splits.name == "a.npz"
    assert np.array_equal(splits.train.numpy(), train.transpose(0, 3, 1, 2))
    assert np.array_equal(splits.test.numpy(), test.transpose(0, 3, 1, 2))
    assert len(splits.validation) == 0
    assert splits.train.is_contiguous()


def test_npz_with_x_train_and_labels(tmp_path: Path) -> None:
    x = noise(10, 5, 5)
    path = save(tmp_path / "a.npz", x_train=x, x_test=x[:3], y_train=x[:, 0, 0])
    assert np.array_equal(read(path, [1, 5, 5]).test.numpy()[:, 0], x[:3])


@pytest.mark.parametrize("single", ["npy", "npz"])
@pytest.mark.parametrize(("n", "trained"), [(2, 1), (10, 9), (57, 52)])
def test_the_last_tenth_of_a_single_array_is_for_testing(
    tmp_path: Path, single: str, n: int, trained: int
) -> None:
    x = noise(n, 7)
    if single == "npy":
        np.save(tmp_path / "a.npy", x)
    else:
        save(tmp_path / "a.npz", anything=x)
    splits = read(tmp_path / f"a.{single}", [7])
    assert np.array_equal(splits.train.numpy(), x[:trained])
    assert np.array_equal(splits.test.numpy(), x[trained:])


@pytest.mark.parametrize(
    ("stored", "shape", "axes"),
    [
        ((5, 6), [1, 5, 6], None),
        ((5, 6, 1), [1, 5, 6], (2, 0, 1)),
        ((5, 6, 3), [3, 5, 6], (2, 0, 1)),
        ((3, 5, 6), [3, 5, 6], (0, 1, 2)),
        ((5, 6, 4), [4, 5, 6], (2, 0, 1)),
        ((3, 7, 3), [3, 7, 3], (0, 1, 2)),  # both readings are possible, one is the model's
        ((3, 7, 3), [3, 3, 7], (2, 0, 1)),
        ((8, 5, 6), [8, 5, 6], (0, 1, 2)),
    ],
)
def test_axes(
    tmp_path: Path, stored: tuple[int, ...], shape: list[int], axes: tuple[int, ...] | None
) -> None:
    x = noise(20, *stored)
    np.save(tmp_path / "a.npy", x)
    train = read(tmp_path / "a.npy", shape).train.numpy()
    want = x[:, None] if axes is None else x.transpose(0, *(a + 1 for a in axes))
    assert np.array_equal(train, want[:18])


def test_floats_stay_floats(tmp_path: Path) -> None:
    x = RNG.random((20, 6))
    for dtype in (np.float64, np.float32, np.float16, ">f4"):
        np.save(tmp_path / "a.npy", x.astype(dtype))
        train = read(tmp_path / "a.npy", [6]).train
        assert train.dtype == torch.float32
        assert np.array_equal(train.numpy(), x.astype(dtype).astype(np.float32)[:18])


def test_integers_become_bytes(tmp_path: Path) -> None:
    x = noise(20, 6)
    for dtype in (np.uint8, np.int64, np.int16, ">u4"):
        np.save(tmp_path / "a.npy", x.astype(dtype))
        assert np.array_equal(read(tmp_path / "a.npy", [6]).train.numpy(), x[:18])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32])
def test_zeros_and_ones_are_black_and_white(tmp_path: Path, dtype: type) -> None:
    x = noise(20, 6) % 2
    train = read(save(tmp_path / "a.npz", train=x.astype(dtype), test=x.astype(dtype)), [6]).train
    assert np.array_equal(train.numpy(), x * 255)


def test_one_bright_pixel_in_the_test_part_means_grey(tmp_path: Path) -> None:
    train, test = noise(20, 6) % 2, noise(20, 6)
    splits = read(save(tmp_path / "a.npz", train=train, test=test), [6])
    assert np.array_equal(splits.train.numpy(), train)


def test_floats_are_binarised_and_resized(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.random((20, 6, 6)))
    settings = {"binarize": "static", "resize": 4, "validation": 2}
    splits = read(tmp_path / "a.npy", [1, 4, 4], **settings)
    for part in splits[1:]:
        assert part.shape[1:] == (1, 4, 4)
        assert part.dtype == torch.float32
        assert set(part.unique().tolist()) == {0.0, 1.0}


def test_arrays_change_their_channels(tmp_path: Path) -> None:
    grey = noise(20, 6, 6, 1)
    np.save(tmp_path / "a.npy", grey.repeat(3, -1))
    train = read(tmp_path / "a.npy", [1, 6, 6], channels=1).train
    assert np.array_equal(train[:, 0].numpy(), grey[:18, ..., 0])


@pytest.mark.parametrize(
    ("arrays", "shape", "sentence"),
    [
        ({"images": noise(4, 4), "labels": noise(4)}, [4], "holds 'images', 'labels'; name two"),
        ({}, [4], "holds no arrays; name two arrays 'train' and 'test'"),
        ({"a": noise(4, 5, 5, 9)}, [3, 4, 4], r"array \[4, 5, 5, 9\]; give \[N, D\]"),
        ({"a": noise(4)}, [4], r"array \[4\]; give \[N, D\]"),
        ({"a": np.array(1)}, [4], r"array \[\]; give"),
        ({"a": noise(0, 4)}, [4], "holds no data; at least two"),
        ({"a": noise(1, 4)}, [4], "holds only one datum; at least two"),
        ({"a": noise(4, 4) / 1.0}, [4], r"floats from .*, not in \[0, 1\]; divide them by 255"),
        ({"a": np.linspace(-1, 1, 8).reshape(2, 4)}, [4], r"from -1 to 1, .*give \(x \+ 1\) / 2"),
        ({"a": np.linspace(-9, 999, 8).reshape(2, 4)}, [4], r"from -9 to 999, .*maximum - min"),
        ({"a": np.array([[0, np.nan], [0, 1]])}, [2], "NaN or infinite .*minimum nan"),
        ({"a": np.array([[0, np.inf], [0, 1]])}, [2], "NaN or infinite .*maximum inf"),
        ({"a": np.array([[0, 1e300], [0, 1]])}, [2], "NaN or infinite .*maximum inf"),
        ({"a": np.array([[0, 256], [-3, 1]])}, [2], "integers from -3 to 256; scale them to 0"),
        ({"a": np.zeros((3, 2), complex)}, [2], "type complex128; give integers in 0 to 255"),
        ({"a": np.array([["a"], ["b"]])}, [1], "type <U1; give integers"),
        ({"a": np.array([[{}], [{}]])}, [1], "Python objects, which are not read"),
        ({"train": noise(4, 4), "test": noise(4, 5)}, [4], r"uint8 \[4, 4\] .* uint8 \[4, 5\] to"),
        ({"train": noise(4, 4), "test": np.zeros((4, 4))}, [4], "give both the same type"),
        ({"train": noise(4, 4), "test": noise(0, 4)}, [4], "the test part of 'a.npz' is empty"),
        ({"train": noise(4, 4), "test": noise(4, 4)}, [5], r"\[4\], .*give model.shape=\[4\]"),
        ({"a": noise(4, 4, 4, 3)}, [1, 4, 4], r"\[3,4,4\].*data.channels=1, or model.shape"),
        ({"a": noise(4, 9, 9, 3)}, [3, 4, 4], r"give data.resize=\[4,4\], or model.shape"),
        ({"a": noise(4, 8, 4, 4)}, [8, 3, 3], r"give data.resize=\[3,3\], or model.shape"),
        ({"a": noise(4, 4, 4, 3)}, [2, 4, 4], r"is \[2,4,4\]; give model.shape=\[3,4,4\]"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path, arrays: dict, shape: list[int], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        read(save(tmp_path / "a.npz", **arrays), shape)


@pytest.mark.parametrize("setting", [{"resize": 8}, {"channels": 3}])
def test_vectors_are_not_images(tmp_path: Path, setting: dict) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=rf"data.{name}: data of shape \[4\] are not images"):
        read(save(tmp_path / "a.npz", a=noise(4, 4)), [4], **setting)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kept", [0, 3, 200, 3000])
def test_a_file_that_is_cut_off(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, noise(100, 64))
    else:
        np.savez_compressed(path, noise(100, 64))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="cannot be read as a NumPy file"):
        read(path, [64])


def test_a_file_that_is_damaged_inside(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", a=noise(100, 64))
    content = bytearray(path.read_bytes())
    content[3000] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a NumPy file"):
        read(path, [64])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*a\.npy; give the path"):
        read(tmp_path / "a.npy", [4])


# Folders


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    train, test = noise(5, 3, 6, 7), noise(2, 3, 6, 7)
    write_images(tmp_path / "train" / "cats", train[:3])
    write_images(tmp_path / "train" / "dogs", train[3:])
    write_images(tmp_path / "val", test)
    (tmp_path / "train" / "cats" / "._000.png").write_bytes(b"left by a file manager")
    (tmp_path / "train" / "labels.txt").write_text("not an image")
    splits = read(tmp_path, [3, 6, 7])
    assert splits.name == tmp_path.name
    assert np.array_equal(splits.train.numpy(), train)
    assert np.array_equal(splits.test.numpy(), test)
    write_images(tmp_path / "test", test[:1])
    assert np.array_equal(read(tmp_path, [3, 6, 7]).test.numpy(), test[:1])


def test_folder_without_parts(tmp_path: Path) -> None:
    images = noise(25, 1, 4, 4)
    write_images(tmp_path / "b", images)
    splits = read(tmp_path, [1, 4, 4])
    assert np.array_equal(splits.train.numpy(), images[:23])
    assert np.array_equal(splits.test.numpy(), images[23:])


def test_folder_as_grey_and_as_colour(tmp_path: Path) -> None:
    grey = noise(4, 1, 6, 6)
    write_images(tmp_path, grey)
    colour = read(tmp_path, [3, 6, 6], channels=3)
    assert np.array_equal(colour.train.numpy(), grey[:3].repeat(3, 1))
    write_images(tmp_path, grey.repeat(3, 1))
    back = read(tmp_path, [1, 6, 6], channels=1).train.numpy()
    assert np.abs(back.astype(int) - grey[:3]).max() <= 1


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1), ("P", 3), ("I;16", 1)])
def test_unusual_pngs(tmp_path: Path, mode: str, channels: int) -> None:
    grey = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    train = read(tmp_path, [channels, 5, 5]).train
    want = np.broadcast_to(np.array(image.convert("RGB"))[..., 0], (channels, 5, 5))
    assert np.array_equal(train[0].numpy(), want if mode != "I;16" else grey[None])


def test_jpegs_are_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG"):
        Image.new("RGB", (8, 8), (120, 120, 120)).save(tmp_path / name, "JPEG")
    splits = read(tmp_path, [3, 8, 8])
    assert (splits.train.int() - 120).abs().max() <= 1


def test_folder_resizes_every_file(tmp_path: Path) -> None:
    for i, side in enumerate((4, 9, 30)):
        Image.new("L", (side + 1, side), 40 * i).save(tmp_path / f"{i}.png")
    splits = read(tmp_path, [1, 8, 6], resize=[8, 6])
    assert splits.train.shape == (2, 1, 8, 6)
    assert splits.train.float().mean((1, 2, 3)).tolist() == [0, 40]


def test_files_of_different_sizes(tmp_path: Path) -> None:
    write_images(tmp_path, noise(3, 1, 4, 4))
    Image.new("L", (6, 5)).save(tmp_path / "001.png")
    sentence = r"001.png is 5 x 6 .*000.png is 4 x 4; .*data.resize=\[4,4\]"
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, [1, 4, 4])


def test_files_of_different_colours(tmp_path: Path) -> None:
    write_images(tmp_path, noise(3, 1, 4, 4))
    Image.new("RGB", (4, 4)).save(tmp_path / "001.png")
    sentence = "001.png has 3 channels but .*000.png has 1 channel; give data.channels=1"
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, [1, 4, 4])
    assert read(tmp_path, [1, 4, 4], channels=1).train.shape == (2, 1, 4, 4)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, noise(3, 1, 4, 4))
    for content in (b"", b"no image", (tmp_path / "000.png").read_bytes()[:40]):
        (tmp_path / "002.png").write_bytes(content)
        with pytest.raises(UserError, match=r"002\.png cannot be read as an image"):
            read(tmp_path, [1, 4, 4])


def test_an_animation_is_no_image(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 99)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"a\.png is an animation"):
        read(tmp_path, [1, 4, 4])


def test_photographs_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    image.getexif()[0x0112] = 6  # orientation: the camera was turned
    for name in ("a.jpg", "b.jpg"):
        image.save(tmp_path / name, exif=image.getexif())
    assert read(tmp_path, [3, 8, 4]).train.shape == (1, 3, 8, 4)


def test_a_folder_with_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no data; at least two"):
        read(tmp_path, [1, 4, 4])
    write_images(tmp_path / "train", noise(1, 1, 4, 4))
    with pytest.raises(UserError, match="holds only one datum"):
        read(tmp_path, [1, 4, 4])
    (tmp_path / "test").mkdir()
    with pytest.raises(
        UserError, match=r"test holds no images; put \.png, \.jpg, \.jpeg or \.webp"
    ):
        read(tmp_path, [1, 4, 4])
