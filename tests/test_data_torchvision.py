"""MNIST and its like, CIFAR-10, and a torchvision that is broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest

from ladder.config import DataConfig
from ladder.data import Splits, load
from ladder.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [1, 28, 28]


def real_data() -> Path:
    """A folder that holds MNIST's four archives."""
    for folder in (os.environ.get("LADDER_DATA"), ROOT.parent / "shared" / "data"):
        archives = Path(folder or "") / "MNIST" / "raw"
        if folder and len(list(archives.glob("*-ubyte.gz"))) == 4:
            return Path(folder)
    pytest.skip("MNIST is not on this machine; set LADDER_DATA")


def raw_images(part: str) -> np.ndarray:
    """The images of an archive, by the description of its format: 16 bytes, then pixels."""
    archive = real_data() / "MNIST" / "raw" / f"{part}-images-idx3-ubyte.gz"
    content = gzip.decompress(archive.read_bytes())
    magic, n, height, width = np.frombuffer(content[:16], ">u4")
    assert magic == 2051
    return np.frombuffer(content[16:], np.uint8).reshape(n, 1, height, width)


def assert_is_mnist(splits: Splits) -> None:
    assert np.array_equal(splits.train.numpy(), raw_images("train"))
    assert np.array_equal(splits.test.numpy(), raw_images("t10k"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and a cache folder of the test's own."""

    def unreachable(*_: Any, **__: Any) -> NoReturn:
        raise URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LADDER_DATA", raising=False)


def copy_archives(folder: Path) -> Path:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (real_data() / "MNIST" / "raw").glob("*.gz"):
        shutil.copyfile(archive, raw / archive.name)
    return raw


def test_mnist_is_what_its_files_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw = copy_archives(tmp_path / "data")
    monkeypatch.setenv("LADDER_DATA", str(tmp_path / "data"))
    assert_is_mnist(load(DataConfig(name="mnist"), SHAPE))
    assert len(list(raw.iterdir())) == 8  # archives and files, and no scratch folder
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")


def test_a_read_only_folder_is_left_as_it_is(tmp_path: Path) -> None:
    raw = copy_archives(tmp_path / "data")
    raw.chmod(0o555)
    try:
        for _ in range(2):  # unpacked, then found
            assert_is_mnist(load(DataConfig(name="mnist", root=str(tmp_path / "data")), SHAPE))
        assert len(list(raw.iterdir())) == 4
    finally:
        raw.chmod(0o755)
    assert len(list((tmp_path / "cache" / "ladder" / "MNIST" / "raw").iterdir())) == 4


@pytest.mark.slow
def test_two_may_unpack_at_once(tmp_path: Path) -> None:
    copy_archives(tmp_path / "data")
    code = (
        "from ladder.data import load; from ladder.config import DataConfig;"
        f"s = load(DataConfig(name='mnist', root={str(tmp_path / 'data')!r}), {SHAPE});"
        "print(int(s.train.long().sum()), int(s.test.long().sum()))"
    )
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: run(code), range(2)))
    want = f"{raw_images('train').sum(dtype=int)} {raw_images('t10k').sum(dtype=int)}"
    assert [run.stdout.strip() for run in runs] == [want, want], runs[0].stderr


def test_a_file_that_is_cut_off_is_unpacked_again(tmp_path: Path) -> None:
    raw = copy_archives(tmp_path / "data")
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    assert_is_mnist(load(DataConfig(name="mnist", root=str(tmp_path / "data")), SHAPE))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_files_that_are_nowhere(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torchvision.datasets")
    with pytest.raises(UserError) as caught:
        load(DataConfig(name=name, root=str(tmp_path / "data")), SHAPE)
    sentence = str(caught.value)
    folder = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
    assert str(tmp_path / "data" / folder / "raw") in sentence
    assert "no network here" in sentence
    assert sentence.count("-ubyte.gz") >= 4
    assert "data=digits" in sentence
    assert "\n" not in sentence


def test_a_damaged_archive_is_not_used(tmp_path: Path) -> None:
    raw = copy_archives(tmp_path / "data")
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="'mnist' is neither complete in"):
        load(DataConfig(name="mnist", root=str(tmp_path / "data")), SHAPE)
    assert len(list(raw.iterdir())) == 4


# CIFAR-10


def cifar_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """An archive like the published one, with 4 images in a file; its images as [N, C, H, W].

    The sums that torchvision checks are those of the published files; here they are of these.
    """
    datasets = pytest.importorskip("torchvision.datasets")
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = {"batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}, 2)}
    for name, part in zip(names, np.split(images, 6), strict=True):
        content = {"data": part.reshape(4, 3072), "labels": [0, 1, 1, 0], "filenames": ["x"] * 4}
        files[name] = pickle.dumps(content, 2)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    packed = hashlib.md5((folder / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    for field, value in {
        "tgz_md5": packed,
        "train_list": [[name, sums[name]] for name in names[:5]],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]},
    }.items():
        monkeypatch.setattr(datasets.CIFAR10, field, value)
    return images[:20], images[20:]


def read_cifar(root: Path, **settings: Any) -> Splits:
    return load(DataConfig(name="cifar10", root=str(root), **settings), [3, 32, 32])


def test_cifar10_is_what_its_archive_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    train, test = cifar_archive(root, monkeypatch)
    for _ in range(2):  # unpacked, then found
        splits = read_cifar(root)
        assert splits.name == "cifar10"
        assert np.array_equal(splits.train.numpy(), train)
        assert np.array_equal(splits.test.numpy(), test)
        assert splits.train.is_contiguous()
        (root / "cifar-10-python.tar.gz").unlink(missing_ok=True)
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert len(list((root / "cifar-10-batches-py").iterdir())) == 7  # and no scratch folder
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")


def test_cifar10_in_a_read_only_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "data"
    train, _ = cifar_archive(root, monkeypatch)
    root.chmod(0o555)
    try:
        assert np.array_equal(read_cifar(root).train.numpy(), train)
        assert [path.name for path in root.iterdir()] == ["cifar-10-python.tar.gz"]
    finally:
        root.chmod(0o755)
    kept = tmp_path / "cache" / "ladder" / "cifar-10-batches-py"
    assert len(list(kept.iterdir())) == 7
    assert np.array_equal(read_cifar(tmp_path / "elsewhere").train.numpy(), train)


@pytest.mark.parametrize("damaged", ["data_batch_3", "batches.meta"])
def test_a_file_of_cifar10_that_is_damaged_is_unpacked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damaged: str
) -> None:
    train, _ = cifar_archive(tmp_path, monkeypatch)
    read_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / damaged).write_bytes(b"damaged")
    assert np.array_equal(read_cifar(tmp_path).train.numpy(), train)


def test_cifar10_that_is_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("torchvision.datasets")
    root = tmp_path / "data"
    root.mkdir()
    part = np.zeros((4, 32, 32, 3), np.uint8)
    np.savez(root / "cifar10_subset.npz", train=part, test=part)  # is not taken for the set
    with pytest.raises(UserError) as caught:
        read_cifar(root)
    sentence = str(caught.value)
    assert f"'cifar10' is neither complete in {root / 'cifar-10-batches-py'} nor" in sentence
    assert "no network here" in sentence
    assert f"put cifar-10-python.tar.gz into {root}, " in sentence
    assert "a .npz file with the arrays 'train' and 'test'" in sentence
    assert "\n" not in sentence
    assert [path.name for path in root.iterdir()] == ["cifar10_subset.npz"]


def test_a_damaged_archive_of_cifar10_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cifar_archive(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="'cifar10' is neither complete in"):
        read_cifar(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with folders in front of its path."""
    paths = os.pathsep.join(map(str, (*path, ROOT)))
    env = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_a_broken_torchvision_hinders_only_what_needs_it(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = f"""
from ladder.config import DataConfig
from ladder.data import load
from ladder.errors import UserError
print(len(load(DataConfig(name="digits", resize=14), [1, 14, 14]).train))
try:
    load(DataConfig(name="mnist"), {SHAPE})
except UserError as error:
    print(error)
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    digits, sentence = result.stdout.splitlines()
    assert digits == "1497"
    assert "does not match the installed torch" in sentence
    assert "operator torchvision::nms does not exist" in sentence
    assert "reinstall both together" in sentence
    assert "data=digits" in sentence


def test_data_and_digits_do_not_import_torchvision() -> None:
    code = (
        "import sys; from ladder.config import DataConfig; from ladder.data import load;"
        "load(DataConfig(name='digits'), [1, 8, 8]); print('torchvision' in sys.modules)"
    )
    assert run(code).stdout.strip() == "False"
