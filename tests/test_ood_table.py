"""Unfamiliar data, the table that tells them from familiar ones, and `ladder ood`."""

from __future__ import annotations

import csv
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ladder
from ladder import cli
from ladder.build import build_model, resolve
from ladder.config import DataConfig
from ladder.data import Rows, load
from ladder.data.digits import load as load_digits
from ladder.data.sets import as_test, drawn
from ladder.data.strange import CHANGES, fitting, strange_sets
from ladder.detect import detect
from ladder.detect.run import Found
from ladder.detect.sets import default_names, unfamiliar_sets
from ladder.detect.write import CSV, FIGURE, JSON, MARKDOWN, STRANGE, markdown, write_found
from ladder.errors import UserError, WorkFailed
from ladder.ood import Detection, OodTable, auroc, level_scores, ood_table
from ladder.train.evaluate import SEED

FILE = """
model:
  system: hierarchy
  shape: [1, 8, 8]
  layers:
    - {dim: 4, hidden: [16]}
    - {dim: 3, hidden: [8]}
    - {dim: 2, hidden: [8]}
data: {name: digits, binarize: dynamic}
train: {steps: 20, batch_size: 100, device: cpu}
"""
FILES = {MARKDOWN, CSV, JSON, FIGURE, STRANGE}
KINDS = {"uint8": torch.uint8, "float32": torch.float32}


def digits(n: int = 40, size: int = 28, kind: str = "uint8") -> Tensor:
    images = load(DataConfig(name="digits"), [1, size, size]).test[:n]
    return images if kind == "uint8" else images / 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 13, 28])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_shape_type_and_range(name: str, size: int, kind: str) -> None:
    images = digits(20, size, kind)
    before, generator = images.clone(), torch.get_rng_state()
    changed = CHANGES[name](images)
    assert changed.shape == images.shape
    assert changed.dtype == KINDS[kind]
    assert changed.min() >= 0
    assert changed.max() <= (255 if kind == "uint8" else 1)
    assert not torch.equal(changed, images)
    assert torch.equal(CHANGES[name](images), changed)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "noise"])
def test_bytes_and_floats_few_and_many_change_alike(name: str) -> None:
    images = digits()
    changed = CHANGES[name](images)
    assert torch.equal((CHANGES[name](images / 255) * 255).round().byte(), changed)
    assert torch.equal(CHANGES[name](images[:7]), changed[:7])


def test_changes_that_can_be_undone() -> None:
    images = digits()
    for name, times in {"mirrored": 2, "inverted": 2, "rotated": 4}.items():
        changed = images
        for _ in range(times):
            changed = CHANGES[name](changed)
        assert torch.equal(changed, images)
    assert torch.equal(CHANGES["mirrored"](images)[..., 0], images[..., -1])


@pytest.mark.parametrize("shape", [(28, 28), (13, 9), (3, 2)])
def test_shuffling_moves_pixels_the_same_way_everywhere(shape: tuple[int, int]) -> None:
    names = torch.arange(
        shape[0] * shape[1], dtype=torch.uint8 if shape[0] < 16 else torch.float32
    )
    images = names.view(1, 1, *shape).repeat(3, 1, 1, 1)
    moved = CHANGES["shuffled"](images)
    assert torch.equal(moved[0].flatten().sort().values, names)
    assert torch.equal(moved[0], moved[2])
    assert not torch.equal(moved, images)


def test_noise_is_uniform_and_keeps_nothing() -> None:
    noise = CHANGES["noise"](digits(200)).double() / 255
    assert noise.mean() == pytest.approx(0.5, abs=0.01)
    assert noise.var() == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(noise, CHANGES["noise"](digits(200) * 0).double() / 255)


def reachable(ground: np.ndarray) -> np.ndarray:
    """Ground that is connected to the outside, by a search pixel by pixel."""
    padded = np.pad(ground, 1, constant_values=True)
    found = np.zeros_like(padded)
    found[0, 0] = True
    queue = deque([(0, 0)])
    while queue:
        i, j = queue.popleft()
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            inside = 0 <= a < padded.shape[0] and 0 <= b < padded.shape[1]
            if inside and padded[a, b] and not found[a, b]:
                found[a, b] = True
                queue.append((a, b))
    return found[1:-1, 1:-1]


@pytest.mark.parametrize("size", [8, 28])
def test_a_silhouette_covers_its_digit_and_has_no_holes(size: int) -> None:
    images = digits(30, size)
    filled = CHANGES["filled"](images)
    assert (filled >= images).all()
    assert (filled[images > 127] == 255).all()
    for image in filled[:, 0].numpy():
        ground = image < 255
        assert np.array_equal(reachable(ground), ground)
    body = filled == 255
    ink = (images > 127) | (images > 127).flip(-1)
    assert (body | ~ink).all()
    assert body.sum() > ink.sum()


def test_a_ring_becomes_a_disc_and_a_spiral_stays_open() -> None:
    down, across = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    radius = ((down - 13.5) ** 2 + (across - 13.5) ** 2).sqrt()
    ring = ((radius > 9.0) & (radius < 11.0)).float()[None, None]
    filled = CHANGES["filled"](ring)[0, 0]
    assert filled[radius < 11.0].min() == 1.0
    assert filled[radius > 14.5].max() == 0.0
    cup = ring.clone()  # open at the top, wider than gaps that are closed
    cup[..., :14, 4:24] = 0.0
    assert CHANGES["filled"](cup)[0, 0, 6, 13] == 0.0


def test_cloth_is_a_grey_silhouette() -> None:
    images = digits(60)
    cloth, body = CHANGES["textured"](images), CHANGES["filled"](images)
    assert (cloth[body == 0] == 0).all()
    assert (cloth <= body).all()
    worn = cloth[body == 255].double() / 255
    assert 0.35 < worn.mean() < 0.75
    assert worn.std() > 0.1
    shades = [c[b == 255].double().mean().item() for c, b in zip(cloth, body, strict=True)]
    assert max(shades) - min(shades) > 50.0


def test_which_changes_fit() -> None:
    assert fitting([1, 28, 28]) == list(CHANGES)
    assert set(CHANGES) - set(fitting([3, 32, 32])) == {"filled", "textured"}
    assert set(CHANGES) - set(fitting([1, 20, 28])) == {"rotated"}
    assert fitting([5]) == fitting([1, 4, 4, 4]) == []
    sets = strange_sets(torch.rand(3, 3, 6, 8))
    assert all(images.shape == (3, 3, 6, 8) for images in sets.values())
    assert {"mirrored", "shuffled"} <= sets.keys()
    with pytest.raises(UserError, match="no change 'miror'; did you mean 'mirrored'"):
        strange_sets(torch.rand(3, 1, 8, 8), ["miror"])
    with pytest.raises(
        UserError, match=r"'filled' does not fit data of shape \[3, 8, 8\]; choose"
    ):
        strange_sets(torch.rand(3, 3, 8, 8), ["filled"])


def test_rows_are_read() -> None:
    images = digits(9, 8)
    rows = Rows(lambda index: images[index], torch.arange(9), [1, 8, 8])
    for name, changed in strange_sets(rows).items():
        assert torch.equal(changed, CHANGES[name](images))


def test_unfamiliar_data_are_drawn_like_a_test_split() -> None:
    grey = load(DataConfig(name="digits"), [1, 8, 8])
    for how in ("none", "static", "dynamic"):
        whole = load(DataConfig(name="digits", binarize=how, validation=50), [1, 8, 8], seed=3)
        assert torch.equal(as_test(grey.test, how), whole.test)
        plain = load(DataConfig(name="digits", validation=50), [1, 8, 8])
        for ours, theirs in zip(drawn(plain, how, 3)[1:], whole[1:], strict=True):
            assert torch.equal(ours, theirs)
    data = DataConfig(name="digits", binarize="dynamic")
    (images,) = unfamiliar_sets(data, [1, 8, 8], grey.test, ["noise"], 200).values()
    assert set(images.unique().tolist()) == {0, 255}
    assert torch.equal(images, as_test(CHANGES["noise"](grey.test[:200]), "static"))


def hierarchy(layers: int = 3, **words: Any) -> ladder.HierarchicalVAE:
    specs = [{"dim": 3, "hidden": [8]}] * layers
    config = {"system": "hierarchy", "shape": [1, 8, 8], "layers": specs, **words}
    return build_model(config=config)


@pytest.mark.parametrize("samples", [0, 3])
def test_the_table_is_the_scores_by_hand(samples: int) -> None:
    model, familiar = hierarchy(), digits(50, 8)
    sets = {"inverted": 255 - familiar, "noise": torch.rand(31, 1, 8, 8)}
    told: list[str] = []
    table = ood_table(model, familiar, sets, samples, seed=7, batch_size=16, tell=told.append)
    a = level_scores(model, familiar, 16, samples, seed=7)
    for name, images in sets.items():
        b = level_scores(model, images, 16, samples, seed=7)
        row = table.sets[name]
        assert row.bound == [auroc(-a.bound[k], -b.bound[k]) for k in range(3)]
        assert row.ratio == [auroc(a.ratio[k], b.ratio[k]) for k in range(3)]
        assert row.ratio[0] == 0.5
        assert row.mean == pytest.approx(b.bound[0].mean().item(), rel=1e-6)
        assert row.n == len(images)
    assert table.mean == pytest.approx(a.bound[0].mean().item(), rel=1e-6)
    assert (table.n, table.samples, table.seed) == (50, samples, 7)
    assert told == list(table.sets) == list(sets)


def test_a_set_cannot_be_told_from_itself() -> None:
    images = digits(60, 8)
    row = ood_table(hierarchy(), images, {"same": images.clone()}).sets["same"]
    assert row.bound == row.ratio == [0.5, 0.5, 0.5]


def test_only_the_first_data_count() -> None:
    model, images = hierarchy(), digits(60, 8)
    few = ood_table(model, images, {"a": images.flip(-1)}, n=20)
    assert few == ood_table(model, images[:20], {"a": images[:20].flip(-1)})
    assert few.sets["a"].n == few.n == 20


def test_unlikely_tables_are_refused() -> None:
    model, images = hierarchy(), digits(5, 8)
    with pytest.raises(UserError, match="n should be at least 1, not 0"):
        ood_table(model, images, {"a": images}, n=0)
    with pytest.raises(UserError, match=r"'a' has data of shape \[1, 9, 8\]; give \[1, 8, 8\]"):
        ood_table(model, images, {"a": torch.rand(5, 1, 9, 8)})
    with pytest.raises(UserError, match="samples should be at least 0, not -1"):
        ood_table(model, images, {"a": images}, samples=-1)
    with pytest.raises(WorkFailed, match="the bounds of the 'a' data are not finite"):
        ood_table(model, images, {"a": torch.full((2, 1, 8, 8), float("nan"))})


def test_what_is_unfamiliar_by_default() -> None:
    mnist, own = DataConfig(name="mnist"), DataConfig(name="digits")
    assert default_names(mnist, [1, 28, 28]) == ["digits", *CHANGES]
    assert default_names(own, [1, 28, 28]) == list(CHANGES)
    assert default_names(mnist, [2, 28, 28]) == fitting([2, 28, 28])
    with pytest.raises(UserError, match=r"\[7\] are no images.* name sets with --against"):
        default_names(mnist, [7])


def test_digits_come_in_any_size_and_colour() -> None:
    grey = torch.zeros(4, 3, 10, 12, dtype=torch.uint8)
    sets = unfamiliar_sets(DataConfig(name="x"), [3, 10, 12], grey, ["digits"], 400)
    assert sets["digits"].shape == (400, 3, 10, 12)
    whole = unfamiliar_sets(DataConfig(name="x"), [1, 8, 8], grey, ["digits"], None)["digits"]
    train, test = load_digits()
    assert torch.equal(whole, torch.cat([test, train]))  # the first 300 are those for testing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ood")
    (folder / "tiny.yaml").write_text(FILE)
    ladder.fit(resolve(folder / "tiny.yaml"), folder / "run", quiet=True)
    return folder / "run"


def test_one_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ood", str(trained), "--n", "60"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{trained / 'ood'}\n"
    assert {p.name for p in (trained / "ood").iterdir()} == FILES
    text = (trained / "ood" / MARKDOWN).read_text()
    assert text.strip() in err
    head, _, *rows = [line.split("|")[1:-1] for line in text.splitlines() if line[:1] == "|"][:9]
    assert [cell.strip() for cell in head] == ["set", "-ELBO", "LLR>1", "LLR>2"]
    assert [row[0].strip() for row in rows] == list(CHANGES)
    assert "digits, binarised, test split, n = 60; unfamiliar: n = 60 of each" in text
    for name in (FIGURE, STRANGE):
        assert (trained / "ood" / name).read_bytes().startswith(b"\x89PNG")

    record = json.loads((trained / "ood" / JSON).read_text())
    model = ladder.from_pretrained(trained)
    grey = load(DataConfig(name="digits"), [1, 8, 8]).test
    familiar = as_test(grey, "dynamic")[:60]
    sets = {k: as_test(v, "dynamic") for k, v in strange_sets(grey[:60]).items()}
    table = ood_table(model, familiar, sets, seed=SEED, batch_size=100)
    for name, row in table.sets.items():
        assert record["sets"][name]["auroc_ratio"] == row.ratio
        assert record["sets"][name]["auroc_bound"] == row.bound
        assert record["sets"][name]["mean"] == row.mean
    assert record["mean"] == table.mean
    assert (record["split"], record["n"], record["seed"], record["step"]) == ("test", 60, SEED, 20)
    assert {"estimator", "kl", "samples", "commit", "data"} <= record.keys()

    with (trained / "ood" / CSV).open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["set"] for line in lines] == list(CHANGES)
    for line, row in zip(lines, table.sets.values(), strict=True):
        assert float(line["AUROC of -ELBO"]) == row.bound[0]
        assert float(line["AUROC of -L>2"]) == row.bound[2]
        assert float(line["AUROC of LLR>2"]) == row.ratio[2]
        assert float(line["mean ELBO"]) == row.mean


def test_sets_of_ones_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8))
    words = ["ood", str(trained), "--json", "--samples", "2", "--n", "300", "--seed", "1"]
    mine = str(tmp_path / "mine.npy")
    out = tmp_path / "deep" / "out"
    given = ["--against", "digits", mine, "--against", "noise", "--out", str(out)]
    assert cli.main([*words, *given]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / JSON).read_text())
    assert list(record["sets"]) == ["digits", "mine.npy", "noise"]
    assert record["sets"]["digits"]["auroc_bound"] == [0.5, 0.5, 0.5]
    assert record["sets"]["digits"]["auroc_ratio"] == [0.5, 0.5, 0.5]
    assert record["sets"]["mine.npy"]["n"] == 30
    assert (record["seed"], record["samples"]) == (1, 2)
    assert record["estimator"] == "importance-weighted, K=2"
    text = (out / MARKDOWN).read_text()
    assert "-IW-2" in text
    assert "unfamiliar: n = 30 to 300 of each" in text


def test_another_shape_and_its_remedy(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "colour.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (20, 3, 9, 9), np.uint8))
    words = ["ood", str(trained), "--n", "20", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--against", str(path)]) == 2
    sentence = (
        "ladder: ood: --against: 'colour.npy' holds data of shape [3,9,9], but model.shape is "
        "[1,8,8]; give data.channels=1 and data.resize=[8,8]\n"
    )
    assert capsys.readouterr().err == sentence
    remedy = ["--against", str(path), "data.channels=1", "data.resize=[8,8]"]
    assert cli.main([*words, *remedy]) == 0
    assert "colour.npy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--against", "miror"],
            "no set, change, folder or array 'miror'; did you mean 'mirrored'",
        ),
        (["--against", "fashion_mnits"], "'fashion_mnits'; did you mean 'fashion_mnist'"),
        (["--against", "absent.npy"], "absent.npy"),
        (["--against", "vectors.npy"], "[7], but model.shape is [1,8,8]; give data of shape"),
        (["--against"], "expected at least one argument"),
        (["--n", "0"], "ood: --samples must be at least 0 and --n at least 1"),
        (["--samples", "-1"], "ood: --samples must be at least 0 and --n at least 1"),
        (["--split", "validation"], "ood: the validation split is empty"),
        (["--split", "tset"], "invalid choice: 'tset'"),
        (["model.layers=[]"], "ood: the model is the run's"),
        (["--n", "5", "--out", "vectors.npy"], "vectors.npy is a file; name a folder"),
    ],
)
def test_mistakes_are_a_sentence(
    words: list[str],
    sentence: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", np.zeros((20, 7), np.uint8))
    assert cli.main(["ood", str(trained), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.splitlines()[-1].startswith("ladder: ")
    assert [p.name for p in tmp_path.iterdir()] == ["vectors.npy"]


def test_folders_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ood", str(tmp_path)]) == 2
    assert "no run is there" in capsys.readouterr().err
    (tmp_path / "config.resolved.yaml").write_text(FILE)
    assert cli.main(["ood", str(tmp_path)]) == 2
    assert "has no checkpoint yet; train first" in capsys.readouterr().err


def test_grey_data_of_the_training_split_are_drawn(trained: Path) -> None:
    found = detect(trained, ["inverted"], split="train", n=50)
    familiar, strange = found.examples.values()
    assert set(familiar.unique().tolist()) == set(strange.unique().tolist()) == {0.0, 1.0}
    assert found.stamp["split"] == "train"


def made_up(levels: int, sets: int = 3) -> Found:
    rows = {
        f"set {i}": Detection([0.1 * i] * levels, [0.5] + [0.05 * i] * (levels - 1), -1.0, 9)
        for i in range(sets)
    }
    stamp = {"data": "x", "binarize": "none", "split": "test", "step": None}
    stamp |= {"estimator": "ELBO, 1 sample", "kl": "sampled", "commit": None}
    return Found(OodTable(rows, -1.0, 9, 0, 0), stamp, {"x (familiar)": torch.zeros(2, 5)})


def test_a_model_with_one_layer_has_only_the_bound(tmp_path: Path) -> None:
    found = made_up(1)
    text = markdown(found)
    assert "| set   | -ELBO |" in text
    assert "has -ELBO only, and no LLR" in text
    assert "LLR>" not in text
    files = write_found(found, tmp_path)
    assert {p.name for p in files} == FILES - {STRANGE}  # vectors are no images
    row = ood_table(hierarchy(1), digits(9, 8), {"a": digits(9, 8).flip(-1)}).sets["a"]
    assert len(row.bound) == 1
    assert row.ratio == [0.5]


def test_a_deep_model_shows_some_levels_and_writes_all(tmp_path: Path) -> None:
    found = made_up(43, sets=12)
    head = next(line for line in markdown(found).splitlines() if line.startswith("| set"))
    cells = [cell.strip() for cell in head.split("|")[1:-1]]
    assert len(cells) == 13
    assert (cells[1], cells[-1]) == ("-ELBO", "LLR>42")
    assert "12 of 43 levels are shown" in markdown(found)
    write_found(found, tmp_path)
    with (tmp_path / CSV).open(encoding="utf-8") as file:
        assert len(next(csv.reader(file))) == 3 + 43 + 42


def test_a_folder_called_like_a_change_is_a_set_of_its_own(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "mirrored"
    folder.mkdir()
    for i, image in enumerate(digits(4, 8)):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    for names in (["mirrored", str(folder)], [str(folder), "mirrored"]):
        found = unfamiliar_sets(DataConfig(name="digits"), (1, 8, 8), digits(4, 8), names, 4)
        assert list(found) == names
