from __future__ import annotations

import math
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ladder.build import build_model, resolve
from ladder.errors import UserError
from ladder.model import HierarchicalVAE
from ladder.noise import seeded
from ladder.pretrained import from_pretrained
from ladder.report import curves, pictures, write_report
from ladder.report.curves import kl_png, objective_lines, objective_png
from ladder.report.history import Line, epoch_means, held_out_line, training_line
from ladder.report.page import Picture, page
from ladder.report.samples import read_temperature, write_samples
from ladder.report.sheet import GAP, PAD, Row, Sheet, drawable, pixels, sheet_png
from ladder.sampling import (
    decode,
    draw_prior,
    encode,
    layer_names,
    posterior_means,
    reconstruct,
    sample,
    top_latents,
)
from ladder.train import fit
from ladder.train.run import METRICS, read_metrics

PICTURES = [
    "curves.png",
    "kl.png",
    "units.png",
    "active_units.png",
    "samples.png",
    "generation.png",
    "temperatures.png",
    "vary_top.png",
    "reconstructions.png",
    "swaps.png",
    "interpolation.png",
    "neighbours.png",
]


def config(shape: list[int], dims: list[int], data: str, **train: Any) -> dict[str, Any]:
    layers = [{"dim": dim, "hidden": [16]} for dim in dims]
    model = {"system": "hierarchy", "shape": shape, "likelihood": "gaussian", "layers": layers}
    train = {"steps": 6, "batch_size": 500, "log_every": 2, "device": "cpu", **train}
    return {"model": model, "data": data, "train": train}


def run_of(out: Path, shape: list[int], dims: list[int], data: str, **train: Any) -> Path:
    fit(resolve(config(shape, dims, data, **train)), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("r") / "a <b>&", [1, 8, 8], [4, 2], "digits")


@pytest.fixture(scope="module")
def written(run: Path) -> list[Path]:
    return write_report(run)


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_a_run_yields_every_picture_and_the_page(run: Path, written: list[Path]) -> None:
    assert written == [*(run / "samples" / name for name in PICTURES), run / "report.html"]
    for path in written[:-1]:
        width, height = size(path.read_bytes())
        assert width > 900
        assert height > 300
    assert sorted(p.name for p in (run / "samples").iterdir()) == sorted(PICTURES)


def test_the_page_needs_nothing_else_and_escapes_text(written: list[Path]) -> None:
    html = written[-1].read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    sources = re.findall(r'src="([^"]{0,22})', html)
    assert sources == ["data:image/png;base64,"] * len(PICTURES)
    assert "<h1>a &lt;b&gt;&amp;</h1>" in html
    assert "<b>" not in html


def test_the_page_says_what_was_measured_and_how(run: Path, written: list[Path]) -> None:
    html = written[-1].read_text(encoding="utf-8")
    last = [r for r in read_metrics(run) if "val/elbo" in r][-1]
    assert f"{last['val/elbo']:.2f} nats per datum (test split, n = 300, K = 1 draw" in html
    assert "KL sampled" in html
    assert "too early to judge" in html
    assert "step-00000006" in html
    assert "batch_size: 500" in html


def test_the_same_seed_draws_the_same_pictures(run: Path, written: list[Path]) -> None:
    before = {path: path.read_bytes() for path in written}
    noise = torch.get_rng_state()
    assert {path: path.read_bytes() for path in write_report(run)} == before
    assert torch.equal(torch.get_rng_state(), noise)


def test_without_metrics_there_are_no_curves(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "samples", ignore_errors=True)
    (copy / METRICS).unlink()
    paths = write_report(copy)
    assert [p.name for p in paths] == [*PICTURES[4:], "report.html"]
    assert "There are no curves" in paths[-1].read_text(encoding="utf-8")


def test_vectors_have_curves_but_no_pictures(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((40, 5), dtype=np.float32)
    np.savez(tmp_path / "v.npz", train=values[:30], test=values[30:])
    run = run_of(tmp_path / "v", [5], [3, 2], str(tmp_path / "v.npz"), batch_size=10)
    paths = write_report(run)
    assert [p.name for p in paths] == [*PICTURES[:4], "report.html"]
    assert "not images" in paths[-1].read_text(encoding="utf-8")


def test_colour_and_three_layers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((13, 3, 6, 5), dtype=np.float32)
    np.savez(tmp_path / "c.npz", train=values[:10], test=values[10:])
    data = str(tmp_path / "c.npz")
    run = run_of(tmp_path / "c", [3, 6, 5], [4, 3, 2], data, batch_size=5)
    assert [p.name for p in write_report(run)] == [*PICTURES, "report.html"]


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint"):
        write_report(copy)
    with pytest.raises(UserError, match="no run is there"):
        write_report(tmp_path)


def windows(epochs: int) -> list[dict[str, Any]]:
    """Three windows of unequal size in each epoch."""
    rng, records = np.random.default_rng(1), []
    for step in range(1, 3 * epochs + 1):
        loss, data = float(rng.normal()), int(rng.integers(1, 100))
        shared = {"step": step, "epoch": step / 3, "train/nll": loss / 3, "kl/z01": 1.0}
        records.append({**shared, "data": data, "train/loss": loss, "train/elbo": -loss})
        records.append({"step": step, "epoch": step / 3, "val/elbo": -loss, "val/nll": 1.0})
    return records


def test_epoch_means_weigh_windows_by_their_data() -> None:
    records = windows(4)
    line = epoch_means(records, "train/loss")
    assert line.x == [1.0, 2.0, 3.0, 4.0]
    training = [r for r in records if "train/loss" in r]
    for i, mean in enumerate(line.y):
        group = training[3 * i : 3 * i + 3]
        weights = [r["data"] for r in group]
        expected = np.average([r["train/loss"] for r in group], weights=weights)
        assert math.isclose(mean, expected, rel_tol=1e-12)
    assert training_line(records, "train/loss") == line


def test_epoch_means_of_a_real_run_are_those_of_all_its_data(run: Path) -> None:
    # 1,497 data in batches of 500 are 3 steps, logged as 2 and 1: the epoch is both together.
    records = [r for r in read_metrics(run) if "train/loss" in r]
    assert [r["data"] for r in records] == [1000, 497, 500, 997]
    expected = (1000 * records[0]["train/loss"] + 497 * records[1]["train/loss"]) / 1497
    assert math.isclose(epoch_means(records, "train/loss").y[0], expected, rel_tol=1e-12)


def test_an_incomplete_epoch_ends_at_its_last_window() -> None:
    assert epoch_means(windows(4)[:-2], "train/loss").x == pytest.approx([1.0, 2.0, 3.0, 11 / 3])


def test_short_runs_are_drawn_by_step() -> None:
    records = windows(2)
    assert training_line(records, "train/loss").x == [1, 2, 3, 4, 5, 6]
    losses = training_line(records, "train/loss").y
    assert held_out_line(records, "val/elbo", -1.0) == Line([1, 2, 3, 4, 5, 6], losses)


def test_the_training_elbo_is_drawn_only_where_it_is_not_the_objective() -> None:
    records = windows(4)
    assert list(objective_lines(records)) == ["objective = -ELBO, train"]
    for record in records:
        if "train/elbo" in record:
            record["train/elbo"] -= 1.0
    assert list(objective_lines(records)) == ["objective, train", "-ELBO, train"]


@pytest.mark.parametrize(("first", "cut"), [(5000.0, True), (130.0, False)])
def test_a_spike_of_the_first_steps_does_not_flatten_the_curve(first: float, cut: bool) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot(range(1, 41), [first, *(120.0 - i / 2 for i in range(39))])
    curves._cut_the_beginning(axes)
    bottom, top = axes.get_ylim()
    assert bottom < 101.0  # the last value
    assert top > 118.0  # what comes after a tenth of the run
    assert (top < first) == cut


def test_curves_of_one_record_and_of_many_layers_are_drawn() -> None:
    one = windows(1)[:1]
    size(objective_png(one))
    size(kl_png([{**one[0], **{f"kl/z{i:02d}": float(i) for i in range(1, 25)}}]))


def test_every_pixel_is_a_square_in_its_place() -> None:
    images = torch.rand(3, 1, 5, 7)
    grid = pixels(images)
    scale = grid.shape[1] // 5
    assert grid.shape == (3, 5 * scale, 7 * scale, 3)
    middle = grid[:, scale // 2 :: scale, scale // 2 :: scale]
    expected = (255 * images[:, 0, :, :, None]).round().byte().numpy()
    assert (middle == expected).all()


def test_a_sheet_holds_its_images_and_its_labels() -> None:
    from io import BytesIO

    from matplotlib.image import imread

    black = torch.zeros(2, 3, 112, 112)
    sheet = Sheet("title", [Row("a label", black), Row("b", black)], {0: "head"}, gaps=[0])
    image = imread(BytesIO(sheet_png(sheet)))
    dark = image[..., :3].max(axis=2) == 0
    rows = dark.sum(axis=1) >= 224  # no label is as wide
    assert abs(int(rows.sum()) - 224) <= 4
    columns = dark.sum(axis=0) >= 224
    assert abs(int(columns.sum()) - 224) <= 4
    spread = np.flatnonzero(columns)
    assert abs(spread[-1] - spread[0] + 1 - (224 + GAP)) <= 4
    assert GAP > PAD
    # The border is blank: nothing is cut.
    assert image[[0, -1], :, :3].min() == 1.0
    assert image[:, [0, -1], :3].min() == 1.0


def test_very_large_images_are_averaged_down() -> None:
    assert pixels(torch.rand(1, 3, 600, 300)).shape == (1, 256, 128, 3)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([1, 8, 8], True), ([3, 8, 8], True), ([2, 8, 8], False), ([8], False), ([8, 8], False)],
)
def test_only_grey_and_colour_images_are_drawable(shape: list[int], expected: bool) -> None:
    assert drawable(shape) is expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, []), (2, [1]), (3, [1, 2]), (5, [1, 2, 3, 4]), (48, [1, 12, 24, 36, 47])],
)
def test_cuts_spread_over_a_deep_model(layers: int, expected: list[int]) -> None:
    assert pictures.cuts(layers) == expected


@pytest.mark.parametrize("layers", [1, 2, 5, 6, 7, 8, 11, 48, 100])
def test_levels_shown_are_spread_from_top_to_bottom(layers: int) -> None:
    names = [f"z{i}" for i in range(layers, 0, -1)]
    shown = pictures.shown(names)
    assert len(set(shown)) == min(layers, 6)
    assert (shown[0], shown[-1]) == (names[0], names[-1])
    assert shown == [name for name in names if name in shown]
    groups = pictures.groups(names)
    assert [name for group in groups for name in group] == names
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert len(groups) == min(layers, 5)


@pytest.fixture(params=[[4], [4, 2], [5, 4, 3, 2]], ids=["1", "2", "4"])
def model(request: pytest.FixtureRequest) -> HierarchicalVAE:
    with seeded(0):
        return build_model(config=config([1, 8, 8], request.param, "digits")["model"]).eval()


def digits(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 8, 8)


def test_generation_replaces_the_lower_levels(model: HierarchicalVAE) -> None:
    layers = len(layer_names(model))
    rows = pictures.generation(model, seed=0).rows
    drawn = draw_prior(model, 10, seed=0)
    torch.testing.assert_close(rows[-1].images, decode(model, drawn).mean)
    assert len(rows) == (1 if layers == 1 else 2 + 3 + 2 * (layers - 2))
    if layers > 1:
        at_mean = decode(model, top_latents(drawn, 1), rest="mean").mean
        assert torch.equal(rows[0].images, at_mean)
        assert not torch.equal(rows[1].images, rows[2].images)


def test_cooling_is_by_the_levels_named(model: HierarchicalVAE) -> None:
    names = layer_names(model)
    sheet = pictures.temperatures(model, seed=3)
    alone = {row.label: row.images for row in sheet.rows}
    assert list(alone) == ([*["all levels"][: len(names) - 1], *names])
    for label, images in alone.items():
        levels = names if label == "all levels" else [label]
        for t, cell in zip(pictures.TEMPERATURES, images.split(pictures.COOLED), strict=True):
            expected = sample(model, pictures.COOLED, dict.fromkeys(levels, t), seed=3)
            assert torch.equal(cell, expected.mean)
    assert list(sheet.heads.values()) == ["0.4", "0.6", "0.8", "1"]


def test_samples_are_shown_at_the_published_temperatures(model: HierarchicalVAE) -> None:
    sheet = pictures.samples(model, seed=3)
    assert [row.label for row in sheet.rows] == ["t = 1", "t = 0.9", "t = 0.8", "t = 0.7"]
    for row, t in zip(sheet.rows, (1.0, 0.9, 0.8, 0.7), strict=True):
        assert torch.equal(row.images, sample(model, pictures.COLUMNS, t, seed=3).mean)


def test_walks_go_from_one_image_to_the_other(model: HierarchicalVAE) -> None:
    test = digits()
    walk = pictures.interpolation(model, test, seed=0)
    a, b = test[pictures.different(test)]
    assert torch.equal(walk.rows[0].images[0], a)
    assert torch.equal(walk.rows[0].images[-1], b)
    assert [row.label for row in walk.rows][-1] == "z1"


def test_reconstructions_keep_ever_fewer_levels(model: HierarchicalVAE) -> None:
    test, layers = digits(), len(layer_names(model))
    rows = pictures.reconstructions(model, test, seed=0).rows
    assert torch.equal(rows[0].images, test[:10])
    assert len(rows) == layers + 1
    for row, top in zip(rows[1:], range(layers, 0, -1), strict=True):
        assert torch.equal(row.images, reconstruct(model, test[:10], top, seed=0).mean)


def test_swaps_go_from_a_to_b_without_repeating_themselves() -> None:
    model = build_model(config=config([1, 8, 8], [5, 4, 3, 2], "digits")["model"]).eval()
    test = digits()
    rows = pictures.swaps(model, test, seed=0).rows
    # The state is Markov: whoever gives z1 is seen.
    assert [row.label for row in rows] == ["A", "all levels of A", "z4, z3, z2 of A, z1 of B", "B"]
    b = test[:10].roll(-1, dims=0)
    assert torch.equal(rows[0].images, test[:10])
    assert torch.equal(rows[-1].images, b)
    assert torch.equal(rows[1].images, reconstruct(model, test[:10], seed=0).mean)
    torch.testing.assert_close(rows[2].images, reconstruct(model, b, seed=0).mean)


def test_neighbours_are_the_nearest_means(model: HierarchicalVAE) -> None:
    test = digits(30)
    test[17] = test[0]
    means = posterior_means(encode(model, test, seed=0))
    for row in pictures.neighbours(model, test, seed=0).rows:
        space = test if row.label == "pixels" else means[row.label]
        assert torch.equal(row.images[0], test[0])
        distances = (space - space[0]).square().flatten(1).sum(1)
        distances[0] = -1.0
        torch.testing.assert_close(row.images[:6], test[distances.argsort()[:6]])
    assert torch.equal(pictures.neighbours(model, test, seed=0).rows[0].images[1], test[17])


def test_few_images_have_few_neighbours(model: HierarchicalVAE) -> None:
    for n in (1, 2, 3):
        assert {len(r.images) for r in pictures.neighbours(model, digits(n), 0).rows} == {2 * n}


def test_the_top_varies_around_draws_of_it(model: HierarchicalVAE) -> None:
    name = layer_names(model)[0]
    bases = draw_prior(model, pictures.BASES, seed=0)[name]
    shown = torch.stack([row.images[0] for row in pictures.vary_top(model, seed=0).rows])
    torch.testing.assert_close(shown, decode(model, {name: bases}, rest="mean").mean)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.8", 0.8), ("0", 0.0), ("z1=0.5", {"z1": 0.5}), ("z1=.5, z2=1", {"z1": 0.5, "z2": 1.0})],
)
def test_temperatures_are_read(text: str, expected: float | dict[str, float]) -> None:
    assert read_temperature(text) == expected


@pytest.mark.parametrize("text", ["hot", "", "z1=", "z1=a", "z1", "z1=0.5,0.8", "z1=1=2", "z1=1,"])
def test_what_is_no_temperature_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"give one number, or numbers by level such as z1=0\.5"):
        read_temperature(text)
    with pytest.raises(UserError, match="names a level twice"):
        read_temperature("z1=0.5,z1=0.6")


def test_samples_are_written_for_levels(run: Path, tmp_path: Path) -> None:
    out = write_samples(run, 3, {"z1": 0.5, "z2": 1.0}, out=tmp_path / "a.npy")
    expected = sample(from_pretrained(run), 3, {"z1": 0.5}, seed=0).mean
    assert np.array_equal(np.load(out), expected.numpy())
    names = {write_samples(run, 3, t).name for t in (0.5, {"z1": 0.5}, {"z1": 0.5, "z2": 0.25})}
    assert names == {
        "prior-t0.5-seed0.png",
        "prior-z1=0.5-seed0.png",
        "prior-z1=0.5-z2=0.25-seed0.png",
    }
    with pytest.raises(UserError, match="no layer 'z3'; choose from z1, z2"):
        write_samples(run, 3, {"z3": 0.5})


def test_captions_and_names_are_escaped() -> None:
    html = page("<t>", {"<k>": "<v>"}, "<c>", [Picture('"n', b"", "<p>")], ["<n>"])
    assert not re.search(r"<[tkvcn]>", html)
    assert "<p>" not in html
    assert 'alt="&quot;n"' in html
