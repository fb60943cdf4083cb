"""Mirrored images: each as it is or mirrored, by a coin that belongs to the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ladder import cli
from ladder.build import resolve
from ladder.config import Config, DataConfig
from ladder.data import binarize, flipped, load
from ladder.errors import UserError
from ladder.noise import reseed
from ladder.train.step import prepare

SMALL = [1, 8, 8]
MODEL = {"system": "hierarchy", "shape": [3, 4, 5], "layers": [{"dim": 2}]}


def config(**data: Any) -> Config:
    raw = {"model": MODEL, "data": {"name": "digits", **data}, "train": {"steps": 9, "seed": 3}}
    return resolve(raw)


def images(count: int = 200) -> Tensor:
    return torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def mirrored(x: Tensor, y: Tensor) -> Tensor:
    """Which of the images are mirrored, `[B]`; each is that, or the image itself."""
    kept = (y == x).flatten(1).all(dim=1)
    turned = (y == torch.from_numpy(x.numpy()[..., ::-1].copy())).flatten(1).all(dim=1)
    assert (kept ^ turned).all()
    return turned


def test_each_image_is_itself_or_its_mirror_image() -> None:
    x = images(4000)
    before = x.clone()
    turned = mirrored(x, flipped(x))
    assert torch.equal(x, before)
    # 4000 coins, 5 standard deviations.
    assert abs(turned.sum().item() - 2000) < 5 * 1000**0.5
    # A coin knows nothing of the one before.
    alike = (turned[1:] == turned[:-1]).sum().item()
    assert abs(alike - 1999.5) < 5 * 1000**0.5


def test_coins_are_those_of_the_step() -> None:
    x, flip = images(), config(flip=True)
    coins = [mirrored(x, prepare(x, step, flip)) for step in (0, 1, 2, 1)]
    assert torch.equal(coins[1], coins[3])
    assert not torch.equal(coins[0], coins[1])
    assert not torch.equal(coins[1], coins[2])
    other = resolve({**flip.model_dump(), "train": {"steps": 9, "seed": 4}})
    assert not torch.equal(mirrored(x, prepare(x, 1, other)), coins[1])


def test_images_are_mirrored_before_they_are_drawn() -> None:
    x = images()
    prepared = prepare(x, 5, config(flip=True, binarize="dynamic"))
    reseed(3, 5)
    grey = flipped(x)
    assert mirrored(x, grey).any()
    assert torch.equal(prepared, binarize(grey))


def test_without_it_nothing_is_mirrored_and_no_coin_thrown() -> None:
    x = images()
    assert torch.equal(prepare(x, 5, config()), x)
    after = torch.rand(3)
    reseed(3, 5)
    assert torch.equal(torch.rand(3), after)


def test_what_lies_otherwise_in_memory_is_mirrored_alike() -> None:
    x = images()
    torch.manual_seed(2)
    plain = flipped(x)
    torch.manual_seed(2)
    assert torch.equal(flipped(x.to(memory_format=torch.channels_last)), plain)


def test_loading_mirrors_nothing() -> None:
    plain, flip = DataConfig(name="digits", validation=9), config(flip=True, validation=9).data
    for one, two in zip(load(plain, SMALL)[1:], load(flip, SMALL)[1:], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [[6], [2, 6], [1, 2, 4, 6]])
def test_what_is_no_image_cannot_be_mirrored(
    shape: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data.npy"
    np.save(file, np.zeros((20, *shape), dtype=np.float32))
    said = f"[{','.join(map(str, shape))}]"
    sentence = f"data.flip: data of shape {said} are not images; leave it out"
    with pytest.raises(UserError) as caught:
        load(DataConfig(name=str(file), flip=True), shape)
    assert str(caught.value) == sentence
    load(DataConfig(name=str(file)), shape)
    words = ["train", "mnist_2layer", f"data={file}", f"model.shape={said}", "data.flip=true"]
    assert cli.main([*words, "train.device=cpu", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr() == ("", f"ladder: {sentence}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]
