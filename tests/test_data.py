"""Batches, binarisation, resizing and the bundled digits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from ladder.config import DataConfig
from ladder.data import binarize, digits, load, permutation, place, take
from ladder.data.images import resize, with_channels
from ladder.errors import UserError

CPU = torch.device("cpu")
GREY = [1, 28, 28]


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("n", [1, 2, 1000, 60000])
def test_permutation_holds_every_row_once(n: int) -> None:
    order = permutation(n, seed=3, epoch=5)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_permutation_depends_on_its_arguments_only() -> None:
    state = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first = permutation(1000, seed=0, epoch=1)
    torch.manual_seed(1)
    assert torch.equal(first, permutation(1000, seed=0, epoch=1))
    torch.set_rng_state(state)
    permutation(1000, seed=0, epoch=2)
    assert torch.equal(state, torch.get_rng_state())
    after = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    assert np.array_equal(numpy_state, after)


def test_permutations_of_seeds_and_epochs_all_differ() -> None:
    orders = {tuple(permutation(50, s, e).tolist()) for s in range(10) for e in range(10)}
    assert len(orders) == 100


def test_permutation_has_no_favourite_place() -> None:
    # Row 0 lands on each of 8 places with probability 1/8; 4000 draws, 5 standard deviations.
    places = torch.stack([permutation(8, seed, 0).argmin() for seed in range(4000)])
    counts = torch.bincount(places, minlength=8)
    assert (counts - 500).abs().max() < 5 * (4000 * 1 / 8 * 7 / 8) ** 0.5


def test_take_scales_bytes_exactly() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    batch = take(images, torch.arange(256), CPU)
    assert batch.dtype == torch.float32
    assert torch.equal(batch.flatten(), torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal((batch * 255).round().byte(), images)


def test_take_gathers_rows_in_the_given_order() -> None:
    images = torch.rand(10, 3, 4, 4)
    index = torch.tensor([7, 0, 7])
    assert torch.equal(take(images, index, CPU), images[index])
    assert take(images, torch.empty(0, dtype=torch.int64), CPU).shape == (0, 3, 4, 4)


def test_place_on_the_cpu_copies_nothing() -> None:
    images = random_bytes(4, 1, 2, 2)
    assert place(images, CPU).data_ptr() == images.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_place_and_take_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images, index, gpu = random_bytes(100, 3, 8, 8), permutation(100, 0, 0), torch.device("cuda")
    want = take(images, index, CPU)
    placed = place(images, gpu)
    assert placed.is_cuda
    assert torch.equal(take(placed, index, gpu).cpu(), want)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (images.nbytes, images.nbytes))
    left = place(images, gpu)
    assert not left.is_cuda
    assert torch.equal(take(left, index, gpu).cpu(), want)


def test_binarisation_has_the_grey_value_as_its_mean() -> None:
    x = torch.linspace(0, 1, 11).expand(20000, 11)
    drawn = binarize(x, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    bound = 5 * (x[0] * (1 - x[0]) / 20000).sqrt()  # nothing is allowed at 0 and at 1
    assert ((drawn.mean(0) - x[0]).abs() <= bound).all()


def test_binarisation_draws_from_the_global_generator_unless_given_one() -> None:
    x = torch.full((100,), 0.5)
    torch.manual_seed(0)
    noise = torch.rand_like(x)
    torch.manual_seed(0)
    assert torch.equal(binarize(x), (noise < x).float())
    state = torch.get_rng_state()
    binarize(x, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())


def test_digits_are_the_published_ones() -> None:
    train, test = digits.load()
    images = torch.cat((train, test))
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    values = (images.double() * 16 / 255).round().to(torch.uint8)
    # Of scikit-learn 1.9's load_digits().images as uint8, which are the archive's 0 to 16.
    published = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == published
    assert images.max() == 255


def test_digits_take_the_size_of_the_model() -> None:
    splits = load(DataConfig(name="digits"), GREY)
    assert splits.name == "digits"
    assert [tuple(part.shape) for part in splits[1:]] == [
        (1497, 1, 28, 28),
        (0, 1, 28, 28),
        (300, 1, 28, 28),
    ]
    assert {part.dtype for part in splits[1:]} == {torch.uint8}
    small = load(DataConfig(name="digits"), [1, 8, 8])
    assert torch.equal(small.train, digits.load()[0])
    colour = load(DataConfig(name="digits", channels=3), [3, 16, 16])
    assert torch.equal(colour.train[:, 0], colour.train[:, 2])


def test_validation_is_the_end_of_the_training_data() -> None:
    whole = load(DataConfig(name="digits"), GREY)
    parts = load(DataConfig(name="digits", validation=100), GREY)
    assert len(parts.validation) == 100
    assert torch.equal(torch.cat((parts.train, parts.validation)), whole.train)
    assert torch.equal(parts.test, whole.test)


def test_static_binarisation_is_the_same_twice() -> None:
    config = DataConfig(name="digits", binarize="static", validation=97)
    state = torch.get_rng_state()
    first, second, other = load(config, GREY, 1), load(config, GREY, 1), load(config, GREY, 2)
    assert torch.equal(state, torch.get_rng_state())
    for part in ("train", "validation", "test"):
        a, b, c = (getattr(splits, part) for splits in (first, second, other))
        assert set(a.unique().tolist()) == {0, 255}
        assert torch.equal(a, b)
        # Held-out data are the same for every seed, so that runs compare.
        assert torch.equal(a, c) == (part != "train")


def test_static_binarisation_keeps_the_mean() -> None:
    grey = load(DataConfig(name="digits"), GREY).train.double() / 255
    drawn = load(DataConfig(name="digits", binarize="static"), GREY).train.double() / 255
    bound = 5 * (grey * (1 - grey)).sum().sqrt() / grey.numel()
    assert (drawn.mean() - grey.mean()).abs() < bound
    certain = (grey == 0) | (grey == 1)
    assert torch.equal(drawn[certain], grey[certain])


def test_dynamic_binarisation_leaves_only_the_training_data_grey() -> None:
    grey = load(DataConfig(name="digits", validation=97), GREY)
    splits = load(DataConfig(name="digits", binarize="dynamic", validation=97), GREY)
    static = load(DataConfig(name="digits", binarize="static", validation=97), GREY)
    assert torch.equal(splits.train, grey.train)
    assert torch.equal(splits.validation, static.validation)
    assert torch.equal(splits.test, static.test)
    batch = take(splits.train, torch.arange(32), CPU)
    assert not torch.equal(binarize(batch), binarize(batch))


def test_resize_keeps_flat_images_and_what_has_the_size() -> None:
    flat = torch.full((3, 1, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(resize(flat, (28, 30)), flat.new_full((3, 1, 28, 30), 77))
    images = random_bytes(3, 1, 8, 8)
    assert resize(images, (8, 8)) is images


def test_resize_enlarges_bilinearly() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    # Pixel centres: the new ones lie at -1/4, 1/4, 3/4, 5/4 of the old grid.
    assert torch.allclose(resize(x, (1, 4)).flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_resize_averages_when_it_shrinks() -> None:
    # Every second column is white: without antialiasing some grey would be lost.
    x = torch.zeros(1, 1, 16, 64)
    x[..., ::2] = 1
    assert torch.allclose(resize(x, (16, 8)), torch.tensor(0.5), atol=0.02)


def test_resize_works_in_chunks_as_in_one() -> None:
    images = random_bytes(2500, 1, 4, 4)
    rows = [0, 1023, 1024, 2499]
    assert torch.equal(resize(images, (7, 7))[rows], resize(images[rows], (7, 7)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels(dtype: torch.dtype) -> None:
    grey = random_bytes(5, 1, 4, 4)
    grey = grey if dtype == torch.uint8 else grey / 255
    colour = with_channels(grey, 3)
    assert colour.shape == (5, 3, 4, 4)
    assert colour.dtype == dtype
    assert torch.allclose(with_channels(colour, 1).float(), grey.float(), atol=1e-6)
    veiled = torch.cat((colour, torch.zeros_like(grey)), 1)
    assert torch.equal(with_channels(veiled, 3), colour)
    assert torch.allclose(with_channels(veiled, 1).float(), grey.float(), atol=1e-6)


def test_grey_of_the_primaries() -> None:
    primaries = torch.eye(3).view(3, 3, 1, 1)
    want = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(with_channels(primaries, 1).flatten(), want)


@pytest.mark.parametrize(
    ("config", "shape", "sentence"),
    [
        ({"name": "digit"}, GREY, "no set or folder 'digit' .*did you mean 'digits'"),
        ({"name": "cats.zip"}, GREY, "folder of images or a .npy or .npz file would do"),
        ({"name": "digits"}, [3, 32, 32], r"\[1,32,32\].*\[3,32,32\]; give data.channels=3, or"),
        ({"name": "digits"}, [64], r"\[1,8,8\].*\[64\]; give model.shape=\[1,8,8\]"),
        (
            {"name": "digits", "resize": 16},
            [3, 32, 32],
            r"give data.channels=3 and data.resize=\[32,32\], or model.shape=\[1,16,16\]",
        ),
        ({"name": "digits", "validation": 1497}, GREY, "1497 of 1497 .* give at most 1496"),
    ],
)
def test_mistakes(config: dict, shape: list[int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(DataConfig(**config), shape)
