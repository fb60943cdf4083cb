"""Sets that stay in their files: rows, folders and arrays too large to hold."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import write_images
from PIL import Image
from torch import Tensor

from ladder.build import build_model, resolve
from ladder.config import DataConfig
from ladder.data import Splits, arrays, load, memory, permutation, place, take
from ladder.data.rows import Data, Rows
from ladder.errors import UserError
from ladder.train.evaluate import evaluate
from ladder.train.loop import batches, set_up

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
PARTS = ("train", "validation", "test")


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def read(path: Path, shape: list[int], **settings: object) -> Splits:
    return load(DataConfig(name=str(path), **settings), shape)


def everything(part: Data) -> Tensor:
    return part.read(torch.arange(len(part))) if isinstance(part, Rows) else part


def assert_same(lazy: Splits, eager: Splits) -> None:
    """The same sets, batch by batch and bit for bit, one of them read when it is needed."""
    for name in PARTS:
        rows, tensor = getattr(lazy, name), getattr(eager, name)
        assert isinstance(rows, Rows)
        assert isinstance(tensor, Tensor)
        assert torch.equal(everything(rows), tensor)
        for index in permutation(len(tensor), seed=1, epoch=2).split(4):
            batch = take(rows, index, CPU)
            assert torch.equal(batch, take(tensor, index, CPU))
            assert batch.is_contiguous()


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 0)


# Rows


def counted(n: int = 12) -> tuple[Rows, Tensor, list[int]]:
    """Rows of a tensor, the tensor, and the rows that were read so far."""
    source = torch.from_numpy(noise(n, 3, 2, 5))
    seen: list[int] = []

    def gather(index: Tensor) -> Tensor:
        seen.extend(index.tolist())
        return source[index]

    return Rows(gather, torch.arange(n), source.shape[1:]), source, seen


def test_rows_look_like_a_tensor_and_read_nothing() -> None:
    rows, tensor, seen = counted()
    for name in ("shape", "dtype", "device", "ndim", "nbytes"):
        assert getattr(rows, name) == getattr(tensor, name)
    assert rows.numel() == tensor.numel()
    assert len(rows) == len(tensor)
    assert rows[2:7].shape == tensor[2:7].shape
    assert place(rows, CPU) is rows
    assert seen == []


@given(st.slices(12).filter(lambda s: s.step is None or s.step > 0), st.data())
def test_slices_of_rows_are_those_of_the_tensor(cut: slice, data: st.DataObject) -> None:
    rows, tensor, seen = counted()
    again = data.draw(
        st.slices(len(tensor[cut])).filter(lambda s: s.step is None or s.step > 0)
        if len(tensor[cut])
        else st.just(slice(None))
    )
    part, want = rows[cut][again], tensor[cut][again]
    assert seen == []
    assert part.shape == want.shape
    assert torch.equal(everything(part), want)


def test_single_rows_and_orders_of_rows() -> None:
    rows, tensor, seen = counted()
    assert torch.equal(rows[3], tensor[3])
    assert torch.equal(rows[-1], tensor[-1])
    assert seen == [3, 11]
    order = torch.tensor([4, 0, 9, 4])
    assert torch.equal(rows[order].read(torch.tensor([2, 1])), tensor[[9, 0]])
    assert torch.equal(rows[order][1:][0], tensor[0])
    assert torch.equal(torch.stack(list(rows)), tensor)
    with pytest.raises(IndexError):
        rows[12]
    with pytest.raises(IndexError):
        rows.read(torch.tensor([12]))


def test_changes_are_made_to_what_is_read() -> None:
    rows, tensor, seen = counted()
    changed = rows.map(lambda x: 255 - x[:, :1])
    assert changed.shape == (12, 1, 2, 5)
    assert seen == []
    assert torch.equal(everything(changed[3:5]), 255 - tensor[3:5, :1])
    assert seen == [3, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tensor, _ = counted(700)  # more than are copied at once
    index, gpu = permutation(700, 0, 0), torch.device("cuda")
    want = take(tensor, index, CPU)
    placed = place(rows, gpu)
    assert isinstance(placed, Tensor)
    assert placed.is_cuda
    assert torch.equal(take(placed, index, gpu).cpu(), want)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (rows.nbytes, rows.nbytes))
    assert place(rows, gpu) is rows
    assert torch.equal(take(rows, index, gpu).cpu(), want)


# Folders


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, [3, 6, 7]),
        ({"shuffle": 5, "validation": 4, "hold_out": "first"}, [3, 6, 7]),
        ({"resize": [4, 5], "channels": 1, "validation": 3}, [1, 4, 5]),
    ],
)
def test_a_folder_left_on_the_disk_gives_the_same_batches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: bool, settings: dict, shape: list[int]
) -> None:
    write_images(tmp_path / "train", noise(23, 3, 6, 7))
    if parts:
        write_images(tmp_path / "valid", noise(6, 3, 6, 7))
    eager = read(tmp_path, shape, **settings)
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert_same(read(tmp_path, shape, **settings), eager)


def test_half_of_the_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_images(tmp_path / "train", noise(5, 1, 4, 4))
    write_images(tmp_path / "test", noise(3, 1, 4, 4))
    limit = 2 * 8 * 16
    for available, lazy in ((limit, False), (limit - 1, True)):
        monkeypatch.setattr(memory, "available", lambda n=available: n)
        splits = read(tmp_path, [1, 4, 4])
        assert [isinstance(getattr(splits, name), Rows) for name in PARTS] == [lazy] * 3


def test_the_size_after_resizing_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_images(tmp_path, noise(8, 1, 16, 16))
    monkeypatch.setattr(memory, "available", lambda: 2 * 8 * 16)
    assert isinstance(read(tmp_path, [1, 4, 4], resize=4).train, Tensor)
    assert isinstance(read(tmp_path, [1, 16, 16]).train, Rows)


@pytest.mark.usefixtures("no_memory")
def test_a_broken_image_in_the_middle_is_named_when_it_is_read(tmp_path: Path) -> None:
    images = noise(20, 1, 4, 4)
    write_images(tmp_path, images)
    whole = (tmp_path / "011.png").read_bytes()
    (tmp_path / "011.png").write_bytes(whole[:40])
    train = read(tmp_path, [1, 4, 4]).train
    good = torch.tensor([0, 10, 12, 17])
    assert np.array_equal((take(train, good, CPU) * 255).round().byte().numpy(), images[good])
    with pytest.raises(UserError) as caught:
        take(train, torch.tensor([3, 11, 12]), CPU)
    sentence = str(caught.value)
    assert sentence.startswith(f"data: {tmp_path / '011.png'} cannot be read as an image (")
    assert "\n" not in sentence
    (tmp_path / "011.png").unlink()
    with pytest.raises(UserError, match=r"011\.png cannot be read as an image \(.*No such file"):
        take(train, torch.tensor([11]), CPU)


@pytest.mark.usefixtures("no_memory")
def test_an_image_that_does_not_fit_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_images(tmp_path, noise(20, 1, 4, 4))
    Image.new("L", (6, 5)).save(tmp_path / "007.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "008.png")
    train = read(tmp_path, [1, 4, 4]).train
    with pytest.raises(UserError, match=r"007\.png is 5 x 6 .*000\.png is 4 x 4; give a size"):
        take(train, torch.tensor([1, 7]), CPU)
    with pytest.raises(UserError, match=r"008\.png has 3 channels but .*give data\.channels=1"):
        take(train, torch.tensor([8]), CPU)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("settings", "shape", "sentence"),
    [
        ({}, [3, 8, 8], r"\[3,4,6\], but model.shape is \[3,8,8\]; give data.resize=\[8,8\], or"),
        ({}, [1, 4, 6], r"give data.channels=1, or model.shape=\[3,4,6\]"),
        ({"binarize": "static"}, [3, 4, 6], "cannot be drawn once; give data.binarize=none"),
        ({"binarize": "dynamic"}, [3, 4, 6], "cannot be drawn once; give data.binarize=none"),
        ({"validation": 9}, [3, 4, 6], "9 of 9 training data .*give at most 8"),
    ],
)
def test_mistakes_with_a_folder_left_on_the_disk(
    tmp_path: Path, settings: dict, shape: list[int], sentence: str
) -> None:
    write_images(tmp_path, noise(10, 3, 4, 6))
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, shape, **settings)


def test_training_and_evaluation_see_the_same_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", noise(40, 1, 8, 8))
    config = resolve(
        {
            "model": {"system": "hierarchy", "shape": [1, 8, 8], "layers": [{"dim": 2}]},
            "data": {"name": str(tmp_path / "images"), "shuffle": 1, "validation": 5},
            "train": {"steps": 5, "batch_size": 7, "device": "cpu"},
        }
    )
    tensors = set_up(config, tmp_path)
    monkeypatch.setattr(memory, "available", lambda: 0)
    files = set_up(config, tmp_path)
    assert isinstance(files.images, Rows)
    assert isinstance(files.held_out, Rows)
    two_epochs = 2 * files.steps_per_epoch
    for lazy, eager in islice(
        zip(batches(files, 3), batches(tensors, 3), strict=True), two_epochs
    ):
        assert torch.equal(lazy, eager)
    model = build_model(config=config)
    assert evaluate(model, files.held_out) == evaluate(model, tensors.held_out)


def test_what_the_system_says_about_its_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info, own, groups = tmp_path / "meminfo", tmp_path / "own", tmp_path / "groups"
    for name, path in (("INFO", info), ("OWN", own), ("GROUPS", groups)):
        monkeypatch.setattr(memory, name, path)
    physical = memory.available()  # without these files
    assert physical >= 2**20
    info.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   6000 kB\nCached: 7 kB\n")
    assert memory.available() == 6000 * 1024
    own.write_text("0::/jobs/mine\n")
    for folder, limit, used in [
        ("", "max", 0),
        ("jobs", 5_000_000, 4_000_000),
        ("jobs/mine", 0, 0),
    ]:
        (groups / folder).mkdir(parents=True, exist_ok=True)
        (groups / folder / "memory.max").write_text(f"{limit or 4_096_000}\n")
        (groups / folder / "memory.current").write_text(f"{used}\n")
        (groups / folder / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    assert memory.available() == 2_000_000  # what the group above has left, files given way
    assert memory.fits(1_000_000)
    assert not memory.fits(1_000_001)
    (groups / "jobs" / "memory.max").write_text("max\n")
    assert memory.available() == 5_096_000
    own.write_text("12:memory:/old\n0::/elsewhere\n")  # a group without files of its own
    assert memory.available() == 6000 * 1024
    info.write_text("MemTotal: 9000 kB\n")  # of an old kernel
    assert memory.available() == physical


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((6, 5, 3), [3, 6, 5]),
        ((3, 6, 5), [3, 6, 5]),
        ((6, 5), [1, 6, 5]),
        ((7,), [7]),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_array_gives_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stored: tuple[int, ...],
    shape: list[int],
    order: str,
) -> None:
    path, settings = tmp_path / "a.npy", {"shuffle": 5, "validation": 4}
    np.save(path, np.asarray(noise(40, *stored), order=order))
    eager = read(path, shape, **settings)
    monkeypatch.setattr(arrays, "MAPPED", path.stat().st_size)
    assert_same(read(path, shape, **settings), eager)
    monkeypatch.setattr(arrays, "MAPPED", path.stat().st_size + 1)
    assert isinstance(read(path, shape).train, Tensor)


def test_a_mapped_array_is_resized_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, settings = tmp_path / "a.npy", {"resize": [3, 5], "channels": 1}
    np.save(path, noise(30, 8, 6, 3))
    eager = read(path, [1, 3, 5], **settings)
    monkeypatch.setattr(arrays, "MAPPED", 1)
    assert_same(read(path, [1, 3, 5], **settings), eager)
    with pytest.raises(UserError, match=r"give data.resize=\[4,4\], or model.shape=\[3,8,6\]"):
        read(path, [3, 4, 4])


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_a_mapped_array_that_fits_is_drawn_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binarize: str
) -> None:
    np.save(tmp_path / "a.npy", noise(40, 9))
    eager = read(tmp_path / "a.npy", [9], binarize=binarize, validation=3)
    monkeypatch.setattr(arrays, "MAPPED", 1)
    lazy = read(tmp_path / "a.npy", [9], binarize=binarize, validation=3)
    assert isinstance(lazy.train, Rows) == (binarize == "dynamic")
    for name in PARTS:
        assert torch.equal(everything(getattr(lazy, name)), getattr(eager, name))
    assert set(lazy.test.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("grey_row", [None, 0, 16, 39])
def test_a_mapped_array_of_zeros_and_ones_is_looked_at_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grey_row: int | None
) -> None:
    x, path = noise(40, 9) % 2, tmp_path / "a.npy"
    if grey_row is not None:
        x[grey_row, 4] = 2
    np.save(path, x)
    monkeypatch.setattr(arrays, "MAPPED", 1)
    splits = read(path, [9])
    want = x * 255 if grey_row is None else x
    assert np.array_equal(everything(splits.train).numpy(), want[:36])
    assert np.array_equal(everything(splits.test).numpy(), want[36:])


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.bool_])
def test_only_bytes_are_mapped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: type
) -> None:
    np.save(tmp_path / "a.npy", (noise(20, 5) % 2).astype(dtype))
    eager = read(tmp_path / "a.npy", [5])
    monkeypatch.setattr(arrays, "MAPPED", 1)
    assert torch.equal(read(tmp_path / "a.npy", [5]).train, eager.train)


def test_a_file_larger_than_the_memory_is_not_read(tmp_path: Path) -> None:
    # A tebibyte with holes: the disk keeps what is written, and reading all of it would take
    # longer than anyone waits, and more memory than there is.
    n = 2**40 // (1024 * 1024 * 3)
    path = tmp_path / "a.npy"
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 1024, 1024, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        begin = file.tell()
        file.write(bytes([7, 8, 9]))
        file.seek(begin + (n - 1) * 3 * 2**20 + 3 * 1025)  # the last image, row 1, column 1
        file.write(bytes([10, 11, 12]))
        file.truncate(begin + n * 3 * 2**20)
    assert path.stat().st_blocks * 512 < 2**24
    splits = read(path, [3, 1024, 1024], shuffle=0)
    assert (len(splits.train), len(splits.test)) == (n - n // 10, n // 10)
    order = np.random.RandomState(0).permutation(n)
    for row, corner, pixel in ((0, 0, (7, 8, 9)), (n - 1, 1, (10, 11, 12))):
        (at,) = np.flatnonzero(order == row)
        part, at = (
            (splits.train, at) if at < len(splits.train) else (splits.test, at - n + n // 10)
        )
        image = (take(part, torch.tensor([at]), CPU) * 255).round()[0]
        assert tuple(image[:, corner, corner].tolist()) == pixel
        assert image.sum() == sum(pixel)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda file: np.save(file, np.array([[{}], [{}]]), allow_pickle=True), "Python objects"),
        (lambda file: file.write(b"no array"), "cannot be read as a NumPy file"),
    ],
)
def test_large_files_that_cannot_be_mapped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: object, sentence: str
) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        content(file)
    monkeypatch.setattr(arrays, "MAPPED", 1)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "a.npy", [4])


def test_a_large_file_that_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, noise(100, 64))
    path.write_bytes(path.read_bytes()[:3000])
    monkeypatch.setattr(arrays, "MAPPED", 1)
    with pytest.raises(UserError, match=r"cannot be read as a NumPy file .*may be cut off"):
        read(path, [64])


def test_integers_of_16_bits_say_how_to_scale_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0, 65535], [1, 2]], dtype=np.uint16))
    with pytest.raises(UserError, match=r"integers from 0 to 65535; scale them to 0 to 255, or"):
        read(tmp_path / "a.npy", [2])


def test_a_row_by_a_number_of_numpy() -> None:
    rows = Rows(lambda index: index.to(torch.uint8).view(-1, 1), torch.arange(5), [1])
    assert torch.equal(rows[np.int64(3)], rows[3])
    assert rows[3].tolist() == [3]
