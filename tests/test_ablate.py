from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ladder import cli
from ladder.ablate import Table, ablate
from ladder.ablate.declare import declare, vary_words
from ladder.ablate.grid import grid
from ladder.ablate.lock import locked
from ladder.ablate.table import spread
from ladder.ablate.write import markdown
from ladder.build import resolve
from ladder.errors import UserError
from ladder.pretrained import pointed, read_weights
from ladder.train import fit, loop
from ladder.train.stop import Stopped

BASE = {
    "model": {
        "system": "hierarchy",
        "shape": [1, 8, 8],
        "layers": [{"dim": 3, "hidden": [8]}, {"dim": 2, "hidden": [8]}],
    },
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 6, "batch_size": 50, "checkpoint_every": 3, "device": "cpu"},
}
FILE = {
    "base": BASE,
    "vary": {
        "model.layers": {"two": BASE["model"]["layers"], "one": [{"dim": 4}]},
        "train.seed": [0, 1],
    },
    "samples": 3,
    "n": 20,
}


def names(table: Table) -> list[str]:
    return [cell.name for cell in table.cells]


def record(out: Path) -> dict[str, Any]:
    """table.json without the one thing that two trainings of the same cell differ in."""
    content: dict[str, Any] = json.loads((out / "table.json").read_text())
    for part in (*content["rows"], *content["cells"]):
        part["numbers"].pop("seconds", None)
    return content


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ladder.ablate.figure.figure_png", lambda _: b"")  # a second each
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path / "file.yaml"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return ablate(FILE, tmp_path_factory.mktemp("table") / "out", quiet=True)


def test_the_grid_is_the_product_the_first_axis_slowest() -> None:
    cells = grid(declare(FILE, {}))
    assert [cell.name for cell in cells] == [
        f"layers={layers},seed={seed}" for layers in ("two", "one") for seed in range(2)
    ]
    assert [cell.config.train.seed for cell in cells if cell.config] == [0, 1, 0, 1]
    assert [len(cell.config.model.layers) for cell in cells if cell.config] == [2, 2, 1, 1]


def test_a_cell_is_what_its_words_make_of_the_base() -> None:
    vary = {"objective.free_bits": [None, {"nats": 0.5}], "train.lr": [1e-05, 0.1]}
    for cell in grid(declare({"base": BASE, "vary": vary}, {}, ["train.ema=0.9"])):
        assert cell.config == resolve(BASE, ["train.ema=0.9", *cell.words])


def test_names_do_not_depend_on_the_other_values() -> None:
    few = {cell.name for cell in grid(declare(BASE, {"train.lr": [0.1], "train.seed": [0, 1]}))}
    more = {"train.lr": [0.2, 0.1], "train.seed": [5, 1, 0]}
    assert few < {cell.name for cell in grid(declare(BASE, more))}


def test_names_are_folders_and_differ() -> None:
    values = ["a/b c", "..", "x" * 300, "x" * 299 + "y"]
    axes = {"model.kl": ["sampled", "closed_form"], "data.root": values, "data.name": ["digits"]}
    cells = grid(declare(BASE, axes))
    assert len({cell.name for cell in cells}) == 8
    for cell in cells:
        assert len(cell.name) <= 200
        assert "/" not in cell.name
        assert " " not in cell.name
        assert "=" in cell.name


def test_words_are_yaml() -> None:
    words = ["model.layers=[{dim: 2}],[{dim: 3}]", "train.lr=1e-3,0.1", "train.ema=null"]
    assert vary_words(words) == {
        "model.layers": [[{"dim": 2}], [{"dim": 3}]],
        "train.lr": [0.001, 0.1],
        "train.ema": [None],
    }


def test_a_base_is_found_beside_its_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "deeper").mkdir()
    path = file.parent / "deeper/a.yaml"
    path.write_text("base: ../base.yaml\noverrides: [train.lr=0.5]\nvary: {train.seed: [7]}\n")
    monkeypatch.chdir("/")
    (cell,) = grid(declare(path, {}))
    assert cell.config == resolve(BASE, ["train.lr=0.5", "train.seed=7"])


def test_a_preset_or_a_configuration_varies_by_words(file: Path) -> None:
    for source in ("mnist_2layer", file.parent / "base.yaml"):
        cells = grid(declare(source, {"train.lr": [0.1, 0.2]}))
        assert [cell.config.train.lr for cell in cells if cell.config] == [0.1, 0.2]


MISTAKES = [
    (
        ["--vary", "model.inferense=ladder"],
        "model: no field 'inferense'; did you mean 'inference'",
    ),
    (["--vary", "modle.kl=sampled"], "no field 'modle'; did you mean 'model'?"),
    (["--vary", "train.lr.x=1"], "train.lr: should be a valid number"),
    (["--vary", "model.kl=sampled,closed"], "unknown value 'closed'; did you mean 'closed_form'"),
    (["--vary", "train.lr=1e-3,fast"], "train.lr: should be a valid number, not 'fast'"),
    (["--vary", "train.lr=1e-3,-1"], "train.lr: should be greater than 0"),
    (["--vary", "model.layers[7].dim=1"], "there is no item 7"),
    (["--vary", "train.seed"], "write key=a,b"),
    (["--vary", "train.seed="], "needs at least one value"),
    (["--vary", "train.seed=1,1"], "the value 1 is given twice"),
    (["--vary", "train.seed=[1"], "not valid YAML"),
    (["--vary", "data.root=a/b,a:b"], "name them further apart"),
    (["train.seed=3"], "this key is varied; give its values with --vary train.seed=3"),
    (["train.lrr=3"], "did you mean 'lr'"),
    (["--samples", "-1"], "--samples must be at least 0"),
    (["--n", "0"], "--n at least 1"),
    (["--jobs", "0"], "--jobs must be at least 1"),
    (["train.device=cuda:99"], "train.device"),
    (["data=digitz"], "did you mean 'digits'"),
    (["--out", "full"], "not empty, and no ablation is there"),
    (["--out", "file.yaml"], "is a file"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_a_sentence_before_anything_is_trained(
    words: list[str], sentence: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/x").touch()
    before = sorted(file.parent.rglob("*"))
    assert cli.main(["ablate", str(file), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert sorted(file.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: mnist_2layer\n", "nothing varies"),
        ("base: mnist_2layer\nvarry: {}\nvary: {}\n", "no field 'varry'; did you mean 'vary'"),
        ("vary: {train.seed: [1]}\n", "base: missing"),
        ("base: mnist_2layr\nvary: {train.seed: [1]}\n", "did you mean 'mnist_2layer'"),
        ("base: 3\nvary: {train.seed: [1]}\n", "base: should be a preset"),
        ("base: mnist_2layer\nvary: {train.seed: 1}\n", "vary.train.seed: should be a list"),
        ("base: mnist_2layer\nsamples: -1\nvary: {train.seed: [1]}\n", "samples: should be"),
        ("base: mnist_2layer\nvary: {train.seed: []}\n", "needs at least one value"),
    ],
)
def test_files_that_are_no_ablation(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml|mnist") as caught:
        grid(declare(path, {}))
    assert sentence in str(caught.value)


def test_spread_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=7).tolist()
    mean, std, cells = spread(values)
    assert (mean, std, cells) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        7,
    )
    assert spread([2.0]) == (2.0, None, 1)


def test_a_cell_is_an_ordinary_run(table: Table, tmp_path: Path) -> None:
    cell = table.cells[1]
    assert cell.config is not None
    fit(cell.config, tmp_path / "alone", quiet=True)
    weights = []
    for run in (table.out / cell.name, tmp_path / "alone"):
        last = pointed(run / "checkpoints", "last")
        assert last is not None
        assert last.name == "step-00000006"
        weights.append(read_weights(last / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_rows_are_means_over_the_seeds_of_what_the_runs_measured(table: Table) -> None:
    for i, row in enumerate(table.rows):
        runs = [table.out / name for name in names(table)[2 * i : 2 * i + 2]]
        lines = [(run / "evaluations.jsonl").read_text().splitlines() for run in runs]
        whole, first = [[json.loads(found[j]) for found in lines] for j in (0, 1)]
        assert {(r["n"], r["split"], r["step"]) for r in whole} == {(300, "test", 6)}
        assert {r["n"] for r in first} == {20}
        layers = ["z1", "z2"][: 2 - i]
        wanted = {"elbo": whole, "iw3": first, **{f"kl_{z}": whole for z in layers}}
        for name, records in wanted.items():
            values = [r[name] for r in records]
            number = row.numbers[name]
            assert number.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert number.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        units = [json.loads((run / "test_units.json").read_text())["units"] for run in runs]
        for z in layers:
            active = [sum(v > 0.01 for v in u[z]["variance"]) for u in units]
            assert row.numbers[f"active_units_{z}"].mean == pytest.approx(np.mean(active))
            assert row.numbers[f"units_{z}"].mean == {"z1": 3 + i, "z2": 2}[z]
        assert row.seeds == [0, 1]
        assert row.numbers["seconds"].mean > 0


def test_parameters_are_those_of_the_weights(table: Table) -> None:
    for cell in table.cells:
        last = pointed(table.out / cell.name / "checkpoints", "last")
        assert last is not None
        weights = read_weights(last / "model.safetensors")
        assert cell.parameters == sum(w.numel() for w in weights.values())


def test_the_formats_agree(table: Table) -> None:
    content = json.loads((table.out / "table.json").read_text())
    sheet = list(csv.DictReader(io.StringIO((table.out / "table.csv").read_text())))
    lines = (table.out / "table.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    heads = rows[0]
    assert heads[:6] == ["layers", "seeds", "parameters", "steps", "ELBO", "IW-3"]
    assert heads[6:] == ["KL z1", "KL z2", "active z1", "active z2", "time, s"]
    assert len(rows) == 4
    for row, record, spread_, text in zip(
        table.rows, content["rows"], sheet, rows[2:], strict=True
    ):
        assert record["values"] == row.values
        assert spread_["layers"] == text[0] == row.values["model.layers"]
        assert spread_["seeds"] == "0 1"
        for name in table.columns:
            number = row.numbers.get(name)
            if number is None:  # the variant of one layer has no z2
                assert name.endswith("_z2")
                assert name not in record["numbers"]
                assert spread_[name] == spread_[f"{name}_std"] == ""
                continue
            assert record["numbers"][name] == number._asdict()
            assert float(spread_[name]) == number.mean
            assert float(spread_[f"{name}_std"]) == number.std
        elbo = row.numbers["elbo"]
        assert text[heads.index("ELBO")] == f"{elbo.mean:.2f} ± {elbo.std:.2f}"
    assert rows[3][heads.index("KL z2")].strip() == ""


def test_the_json_carries_what_qualifies_a_number(table: Table) -> None:
    content = json.loads((table.out / "table.json").read_text())
    assert {"samples", "n", "split", "commit", "environment", "unit", "vary"} <= content.keys()
    assert [cell["seed"] for cell in content["cells"]] == [0, 1, 0, 1]
    for cell in content["cells"]:
        assert cell["finished"]
        assert {"trained_at_commit", "words", "parameters", "steps"} <= cell.keys()
        for evaluation in cell["evaluations"]:
            stamps = {"estimator", "kl", "n", "split", "seed", "step", "commit", "data"}
            assert stamps <= evaluation.keys()


def test_the_figure_is_a_picture(table: Table) -> None:
    from PIL import Image

    with Image.open(table.out / "figure.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_the_written_file_declares_the_same_cells(table: Table) -> None:
    again = grid(declare(table.out / "ablation.yaml", {}))
    assert [(c.name, c.config) for c in again] == [(c.name, c.config) for c in table.cells]


def test_again_does_nothing_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in table.out.rglob("*") if p.is_file()}
    monkeypatch.setattr("ladder.ablate.cell.fit", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr("ladder.ablate.cell.measure", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr("ladder.ablate.cell.unit_profile", lambda *_: pytest.fail("profiled"))
    ablate(FILE, table.out, quiet=True)
    assert {p: p.read_bytes() for p in table.out.rglob("*") if p.is_file()} == before


def test_more_samples_measure_without_training(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = shutil.copytree(table.out, tmp_path / "copy")
    monkeypatch.setattr("ladder.ablate.cell.fit", lambda *_, **__: pytest.fail("trained"))
    again = ablate(FILE, out, samples=5, n=20, vary={"train.seed": [1]}, quiet=True)
    assert all("iw5" in row.numbers and "iw3" not in row.numbers for row in again.rows)
    assert again.rows[0].numbers["elbo"].std is None


def test_another_configuration_in_the_folder(table: Table) -> None:
    with pytest.raises(UserError, match=r"was trained with train\.lr 0\.001, not 0\.01; give"):
        ablate(FILE, table.out, overrides=["train.lr=0.01"], quiet=True)
    with pytest.raises(UserError, match=r"was trained with train\.steps 6, not 8"):
        ablate(FILE, table.out, overrides=["train.steps=8"], quiet=True)
    with pytest.raises(UserError, match=r"where other keys were varied; give another --out"):
        ablate(FILE, table.out, vary={"train.lr": [0.001]}, quiet=True)


def test_two_at_once_in_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "."), pytest.raises(UserError, match="another 'ladder ablate'"):  # noqa: SIM117
        with locked(tmp_path):
            pytest.fail("locked twice")


# `ladder ablate` that kills itself, really, after four steps of its second cell.
SUICIDE = """
import os, signal, sys
from ladder import cli
from ladder.train import loop

train_step = loop.train_step

def step_or_die(state, x, config, of):
    if state.step == 4 and config.train.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(state, x, config, of)

loop.train_step = step_or_die
cli.main(sys.argv[1:])
"""


def test_killed_and_called_again_makes_the_same_table(
    file: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ablate", str(file), "--out", "out", "--quiet"]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", SUICIDE, *words], env=threads)
    assert killed.returncode == -signal.SIGKILL
    assert Path("out/layers=two,seed=1/checkpoints/last").read_text() == "step-00000003"
    evaluations = Path("out/layers=two,seed=0/evaluations.jsonl")
    evaluations.write_text(evaluations.read_text()[:-20])  # torn in the middle of a line
    trained: list[Path] = []

    def noted(config: Any, out: Path, **given: Any) -> Any:
        trained.append(out)
        return fit(config, out, **given)

    monkeypatch.setattr("ladder.ablate.cell.fit", noted)
    assert cli.main(words) == 0
    assert [path.name for path in trained] == names(table)[1:]
    ours, theirs = record(Path("out")), record(table.out)
    for content in (ours, theirs):
        content.pop("what")
    assert ours == theirs


def test_a_signal_stops_with_a_checkpoint_and_a_table(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = loop.train_step

    def step_and_signal(state: Any, x: Any, config: Any, of: int) -> None:
        train_step(state, x, config, of)
        if state.step == 4 and config.train.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "train_step", step_and_signal)
    words = ["ablate", str(file), "--out", "out", "--vary", "model.kl=sampled", "train.seed=0,1"]
    assert cli.main([*words, "--samples", "0"]) == 130
    assert "stopped; 1 of 4 cells are done; the same command goes on" in capsys.readouterr().err
    assert Path("out/layers=two,seed=1,kl=sampled/checkpoints/last").read_text() == "step-00000004"
    content = json.loads(Path("out/table.json").read_text())
    assert [cell["finished"] for cell in content["cells"]] == [True, False, False, False]
    assert "is not finished" in Path("out/table.md").read_text()
    assert "| 1 of 2 |" in Path("out/table.md").read_text()


def test_the_time_limit_is_one_for_all_cells(file: Path) -> None:
    words = ["ablate", str(file), "--out", "out", "--quiet"]
    assert cli.main([*words, "train.time_limit=1e-9"]) == 75
    with pytest.raises(Stopped, match="0 of 4 cells are done"):
        ablate(file, "out", overrides=["train.time_limit=1e-9"], jobs=2, quiet=True)
    done = ablate(file, "out", vary={"train.seed": [0]}, samples=0, quiet=True)
    assert not done.failed
    assert len(done.results) == 2


def test_a_cell_that_fails_is_in_the_table(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["ablate", "base.yaml", "--out", "out", "--samples", "2", "--n", "5", "--json"]
    assert cli.main([*base, "--vary", "train.lr=1e-3,1e30", "train.seed=0,1"]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    good, bad = content["rows"]
    assert good["seeds"] == [0, 1]
    assert good["failed"] == {}
    assert bad["seeds"] == []
    assert set(bad["failed"]) == {"lr=1e+30,seed=0", "lr=1e+30,seed=1"}
    assert all("is not finite" in reason for reason in bad["failed"].values())
    assert "2 of 4 cells failed" in err
    text = Path("out/table.md").read_text()
    assert "| 1e+30 | failed |" in text
    assert "* `lr=1e+30,seed=1` failed: step" in text
    sheet = list(csv.DictReader(io.StringIO(Path("out/table.csv").read_text())))
    assert sheet[1]["elbo"] == ""
    assert "is not finite" in sheet[1]["failed"]


def test_an_impossible_combination_is_a_failed_cell(tmp_path: Path) -> None:
    vary = {"model.inference": ["bottom_up", "ladder"], "model.merge": ["direct", "concat"]}
    table = ablate(BASE, tmp_path / "out", vary=vary, overrides=["train.steps=2"], quiet=True)
    ((name, reason),) = table.failed.items()
    assert name == "inference=bottom_up,merge=concat"
    assert "merge 'concat' does not fit inference 'bottom_up'" in reason
    assert len(table.results) == 3
    assert not (tmp_path / "out" / name).exists()
    assert f"`{name}` failed" in markdown(table)


def test_nothing_possible_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit inference 'bottom_up'"):
        ablate(BASE, tmp_path / "out", vary={"model.merge": ["concat"]}, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_line_for_each_cell(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "base.yaml", "train.steps=2", "--vary", "train.lr=0.1,0.2", "--out", "out"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == "out\n"
    plan, first, second, *_ = err.splitlines()
    assert plan == "2 cells (2 train.lr), 2 steps each, in out"
    assert first.startswith("[1/2] lr=0.1: ELBO -")
    assert second.startswith("[2/2] lr=0.2: ELBO -")
    assert cli.main([*words, "--quiet"]) == 0
    assert "[" not in capsys.readouterr().err.partition("|")[0]


def test_print_config_is_an_ablation_that_says_everything(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ablate", str(file), "train.lr=0.5", "--print-config"]) == 0
    Path("again.yaml").write_text(capsys.readouterr().out)
    ours, theirs = grid(declare("again.yaml", {})), grid(declare(file, {}, ["train.lr=0.5"]))
    assert [cell.config for cell in ours] == [cell.config for cell in theirs]
    assert not Path("runs").exists()


def test_workers_make_the_same_table(table: Table, tmp_path: Path) -> None:
    vary = {"model.layers": {"two": BASE["model"]["layers"]}, "train.lr": [0.001, 1e30]}
    ours = ablate(FILE, tmp_path / "out", vary={**vary, "train.seed": [1]}, jobs=2, quiet=True)
    good, bad = ours.rows
    (reason,) = bad.failed.values()
    assert "is not finite; the first to go was" in reason
    (theirs,) = [table.results[n] for n in names(table) if n == "layers=two,seed=1"]
    for name, number in good.numbers.items():
        if name != "seconds":  # one thread here, perhaps more there
            assert number.mean == pytest.approx(theirs.numbers[name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_workers_end_with_the_command_and_a_checkpoint(
    file: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "ladder.cli", "ablate", str(file), "--out", "out", "--quiet",
               "--jobs", "2", "train.steps=1000000", "train.checkpoint_every=1000000"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    runs = [Path(f"out/layers=two,seed={seed}") for seed in (0, 1)]
    try:
        _wait(lambda: all((run / "metrics.jsonl").is_file() for run in runs))
    finally:
        process.send_signal(number)
    assert process.wait() == code
    _wait(lambda: all((run / "checkpoints/last").is_file() for run in runs))

    def free() -> bool:
        try:
            with locked(Path("out")):
                return True
        except UserError:
            return False

    _wait(free)


def _wait(until: Any, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.1)
