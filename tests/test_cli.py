from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ladder import cli
from ladder.pretrained import read_weights
from ladder.train import loop

FILE = """
model:
  system: hierarchy
  shape: [1, 8, 8]
  layers:
    - {dim: 4, hidden: [16]}
    - {dim: 2, hidden: [8]}
data: digits
train: {steps: 20, batch_size: 100, checkpoint_every: 10, device: cpu}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(FILE)
    code = cli.main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run"), "--quiet"])
    assert code == 0
    return folder / "run"


def test_training_ends_with_the_run_directory(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(file), "--out", "run", "train.lr=0.002", "model.layers[1].dim=3"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == "run\n"
    assert "ELBO" in err
    assert "step 20/20" in err
    resolved = yaml.safe_load(Path("run/config.resolved.yaml").read_text())
    assert resolved["train"]["lr"] == 0.002
    assert resolved["model"]["layers"][1]["dim"] == 3
    assert Path("run/config.yaml").read_text().startswith(FILE)
    assert "reconstructions.png" in {p.name for p in Path("run/samples").iterdir()}


def test_training_in_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(file), "--json", "train.steps=3"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["steps"] == 3
    assert Path(result["run"]).name.startswith("hierarchy-")
    assert all(Path(f).is_file() for f in result["files"])
    assert "ELBO" in err


def test_resuming_goes_on(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(file), "--out", "a", "--quiet", "train.steps=10"]) == 0
    assert cli.main(["train", "--resume", "a", "--quiet", "train.steps=20"]) == 0
    assert cli.main(["train", str(file), "--out", "b", "--quiet"]) == 0
    last = "checkpoints/step-00000020/model.safetensors"
    a, b = read_weights(Path("a") / last), read_weights(Path("b") / last)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert capsys.readouterr().out == "a\na\nb\n"


def test_wishes_to_resume(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", str(file), "--out", "run", "--quiet"]
    assert cli.main([*base, "train.resume=true"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert not Path("run").exists()
    assert cli.main([*base, "train.resume=auto", "train.steps=10"]) == 0
    assert cli.main([*base, "train.resume=auto"]) == 0
    assert cli.main([*base]) == 2
    assert "not empty" in capsys.readouterr().err
    assert Path("run/checkpoints/last").read_text() == "step-00000020"


def test_print_config_writes_nothing_and_reads_back(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(file), "train.lr=3e-4", "--print-config"]) == 0
    text = capsys.readouterr().out
    Path("again.yaml").write_text(text)
    assert cli.main(["plan", "again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == text
    assert yaml.safe_load(text)["train"]["lr"] == 3e-4
    assert sorted(p.name for p in Path().iterdir()) == ["again.yaml", "tiny.yaml"]


def test_evaluating(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(trained), "--samples", "5", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["iw5"] > record["elbo"]
    assert record["elbo"] == pytest.approx(-record["nll"] - record["kl_z1"] - record["kl_z2"])
    stamps = {"kl", "estimator", "n", "split", "seed", "step", "commit", "data"}
    assert stamps <= record.keys()
    assert record["n"] == 300
    last = (trained / "evaluations.jsonl").read_text().splitlines()[-1]
    assert json.loads(last) == record
    assert cli.main(["evaluate", str(trained), "--n", "10", "--split", "train"]) == 0
    assert "elbo" in capsys.readouterr().out
    assert cli.main(["evaluate", str(trained), "--split", "validation"]) == 2


def test_sampling(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(trained), "--n", "6", "--seed", "3", "--temperature", "0.5"]
    for name in ("a.npy", "b.npy", "c.png"):
        assert cli.main([*words, "--out", str(tmp_path / name)]) == 0
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.shape == (6, 1, 8, 8)
    assert (a == b).all()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*words, "--out", str(tmp_path / "d.gif")]) == 2
    assert cli.main(["sample", str(trained), "--n", "0"]) == 2
    assert cli.main(["sample", str(tmp_path / "nowhere")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_reporting(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(trained), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert Path(files[-1]).name == "report.html"


def test_planning_counts_what_building_makes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "mnist_2layer", "data=digits", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == 610_480
    assert plan["latents"] == {"z2": [16], "z1": [32]}
    assert plan["steps"] == 1500
    assert plan["memory_mib"]["weights"] == pytest.approx(610_480 * 4 / 2**20)
    assert cli.main(["plan", str(file)]) == 0
    assert "z1" in capsys.readouterr().out
    assert sorted(p.name for p in Path().iterdir()) == ["tiny.yaml"]


def test_planning_without_the_data(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(file), "data=nowhere.npz", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "nowhere.npz" in err
    plan = json.loads(out)
    assert plan["steps"] == 20
    assert "nowhere.npz" in plan["data"]


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets", "*mnist*", "--json"]) == 0
    assert "mnist_2layer" in json.loads(capsys.readouterr().out)
    assert cli.main(["presets", "nothing*"]) == 2


def test_the_schema_takes_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"preset", "model", "objective", "data", "train"} == schema["properties"].keys()
    train = schema["$defs"]["TrainConfig"]
    assert "required" not in schema
    assert train["properties"]["lr"]["description"] == "Learning rate."
    assert train["additionalProperties"] is False


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "name a preset"),
        (["train", "mnist_2layr"], "did you mean 'mnist_2layer'"),
        (["train", "mnist_2layer", "train.lrr=1"], "did you mean 'lr'"),
        (["train", "mnist_2layer", "model.inference=bottom-up"], "did you mean 'bottom_up'"),
        (["train", "mnist_2layer", "model.likelihood=bernouli"], "did you mean 'bernoulli'"),
        (["train", "mnist_2layer", "train.lr=fast"], "should be a valid number, not 'fast'"),
        (["train", "mnist_2layer", "train.lr=0"], "should be greater than 0, not 0"),
        (["train", "mnist_2layer", "model.layers=[]"], "needs at least 1 item"),
        (["train", "mnist_2layer", "data=digitz"], "did you mean 'digits'"),
        (["train", "mnist_2layer", "data=digits", "model.shape=[3,28,28]"], "data.channels=3"),
        (["train", "mnist_2layer", "train.device=cuda:99"], "train.device"),
        (["train", "mnist_2layer", "data=digits", "--out", "full"], "not empty"),
        (["train", "mnist_2layer", "data=digits", "--out", "/proc/x"], "cannot be written"),
        (["train", "--resume", "nowhere"], "no run is there"),
        (["train", "mnist_2layer", "--unknown"], "--unknown"),
        (["train", "twice.yaml"], "key 'lr' is given twice"),
        (["train", "not.yaml"], "not valid YAML"),
        (["train", "absent.yaml"], "No such file"),
        (["evaluate", "nowhere"], "no run is there"),
        (["sample", "nowhere"], "no such folder"),
        (["report", "nowhere"], "no run is there"),
        (["plan", "mnist_2layer", "model.layers[0].dim=-1"], "model.layers[0].dim"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_2(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/x").touch()
    Path("twice.yaml").write_text("train:\n  lr: 1\n  lr: 2\n")
    Path("not.yaml").write_text("a: b: c\n")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_mnist_that_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LADDER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert cli.main(["train", "mnist_2layer"]) == 2
    err = capsys.readouterr().err
    assert "train-images-idx3-ubyte" in err
    assert "data=digits" in err
    assert list(tmp_path.iterdir()) == []


def test_failed_work_exits_1(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", str(file), "--quiet", "--out", "run", "train.lr=1e30"]) == 1
    err = capsys.readouterr().err
    assert "is not finite; the first to go was" in err
    assert "module" in err


def test_a_signal_to_the_command(file: Path) -> None:
    command = [sys.executable, "-m", "ladder.cli", "train", str(file), "train.steps=100000",
               "train.log_every=5", "--out", "run"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = Path("run/metrics.jsonl"), time.monotonic() + 60
    while not metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out == ""
    assert "go on with --resume run" in err
    assert "Traceback" not in err
    assert Path("run/checkpoints/last").is_file()


def test_help_and_presets_import_nothing_heavy() -> None:
    code = (
        "import sys; from ladder import cli; cli.main(['--help']); cli.main(['presets']);"
        "heavy = {'torch', 'pydantic', 'numpy', 'matplotlib', 'yaml'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    environment = {**os.environ, "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert end.value.code == 0
        assert verb in capsys.readouterr().out


def test_an_unforeseen_error_is_not_hidden(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "train_step", wrong)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", str(file), "--quiet"])


FLUSHED = """
import sys
import torch
from ladder import cli

cli.main = lambda: print((torch.tensor(1e-39) * 1.0).item()) or 0
sys.argv = ["ladder", "train"]
cli.entry()
"""


def test_the_command_takes_denormals_for_zero_and_the_library_does_not() -> None:
    ended = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "0.0\n")
    assert cli.main(["presets"]) == 0
    assert (torch.tensor(1e-39) * 1.0).item() > 0.0


def test_resuming_a_path_is_the_run_that_was_asked_for(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = f"train.resume={trained}"
    assert cli.main(["train", "mnist_2layer", "data=digits", word]) == 2
    assert "is a run of another model than mnist_2layer" in capsys.readouterr().err
    own = str(trained.parent / "tiny.yaml")
    assert cli.main(["train", own, word, "--out", "elsewhere"]) == 2
    assert "leave --out away" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "ablate", "bench"])
def test_other_verbs_are_for_one_process(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert cli.main([verb, "anything"]) == 2
    assert "torchrun is for ladder train" in capsys.readouterr().err
