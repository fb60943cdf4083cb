"""CelebA: which part of a face, which faces to train and to test on, and what may be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ladder.config import DataConfig
from ladder.data import Rows, load, memory
from ladder.errors import UserError

SHAPE = [3, 64, 64]
PARTS = {"000003.png": 0, "000001.png": 1, "000002.png": 0, "000004.png": 2, "000005.png": 1}


def face(red: int, height: int = 218, width: int = 178) -> np.ndarray:
    """Red tells which face it is, green the row and blue the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.full_like(rows, red), rows, columns], axis=2).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Faces without loss, so that every pixel is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sets" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    for name in PARTS:
        Image.fromarray(face(10 * int(name[:6]))).save(folder / "img_align_celeba" / name)
    text = "".join(f"{name} {part}\n" for name, part in PARTS.items())
    (folder / "list_eval_partition.txt").write_text(text)
    return tmp_path / "sets"


def read(root: Path, **words: object) -> tuple[torch.Tensor, torch.Tensor]:
    splits = load(DataConfig(name="celeba64", root=str(root), **words), SHAPE)
    assert isinstance(splits.train, torch.Tensor)
    assert isinstance(splits.test, torch.Tensor)
    return splits.train, splits.test


def test_parts_are_those_of_the_list_in_its_order(root: Path) -> None:
    train, test = read(root)
    assert train.shape == test.shape == (2, 3, 64, 64)
    assert train.dtype == test.dtype == torch.uint8
    assert [int(image[0, 0, 0]) for image in train] == [30, 20]
    assert [int(image[0, 0, 0]) for image in test] == [10, 50]


def test_the_published_square_is_kept(root: Path) -> None:
    """Box (left 15, upper 40, right 163, lower 188); a pixel in its middle is a mean there."""
    image = read(root)[0][0].float()
    centres = (torch.arange(64) + 0.5) * 148 / 64 - 0.5
    inner = slice(2, 62)  # at the edges the filter is cut off
    for plane, start in ((image[1, :, 30], 40), (image[2, 30], 15)):
        assert ((plane - (centres + start))[inner].abs() <= 0.75).all()
    assert image[1].std(dim=1).max() == 0.0
    assert image[2].std(dim=0).max() == 0.0


def test_it_is_nearly_what_pillow_makes_of_it(root: Path) -> None:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (20, 16, 3), dtype=np.uint8))
    picture = coarse.resize((178, 218), Image.Resampling.BICUBIC)
    picture.save(root / "celeba/img_align_celeba/000003.png")
    small = picture.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(small)).permute(2, 0, 1).int()
    assert (read(root)[0][0].int() - expected).abs().max() <= 1


def test_what_does_not_fit_is_left_in_its_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(root)[0]
    monkeypatch.setattr(memory, "fits", lambda size: False)
    splits = load(DataConfig(name="celeba64", root=str(root)), SHAPE)
    assert isinstance(splits.train, Rows)
    assert torch.equal(splits.train.read(torch.tensor([1, 0])), expected[[1, 0]])


def test_faces_are_found_in_the_cache_too(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (root).rename(tmp_path / "cache" / "ladder")
    assert len(read(tmp_path / "elsewhere")[0]) == 2


def failing(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_said_with_where_to_get_it(tmp_path: Path, root: Path) -> None:
    text = failing(tmp_path / "nowhere")
    assert f"'celeba64' is not in {tmp_path / 'nowhere'}" in text
    assert "img_align_celeba.zip and list_eval_partition.txt from https://mmlab" in text
    (root / "celeba/list_eval_partition.txt").unlink()
    assert "celeba/list_eval_partition.txt" in failing(root)


@pytest.mark.parametrize("line", ["000001.png", "000001.png 3", "", "a b c"])
def test_a_line_that_is_none(line: str, root: Path) -> None:
    path = root / "celeba/list_eval_partition.txt"
    path.write_text(f"000003.png 0\n{line}\n")
    assert f"{path}, line 2 is {line!r}; it should be a file and its part" in failing(root)


def test_files_that_the_list_does_not_find(root: Path) -> None:
    faces = root / "celeba/img_align_celeba"
    (faces / "000004.png").unlink()  # of a part that is not read
    read(root)
    (faces / "000001.png").unlink()
    assert "do not go together, 000001.png and 0 more is missing" in failing(root)
    (root / "celeba/list_eval_partition.txt").write_text("000003.png 0\n")
    assert "parts 0 and 1 is missing" in failing(root)


def test_images_that_are_no_aligned_faces(root: Path) -> None:
    path = root / "celeba/img_align_celeba/000003.png"
    Image.fromarray(face(1, 178, 218)).save(path)
    assert f"{path} is 178 x 218 (height x width), but aligned faces are 218 x" in failing(root)
    path.write_bytes(b"no image")
    assert f"{path} cannot be read as an image" in failing(root)
