"""Released checkpoints: `ladder import`, and going on with what was trained elsewhere."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import ladder
from ladder.build import build_model, resolve
from ladder.cli import main
from ladder.systems.lvae_conv.released import released_name as conv_name
from ladder.systems.vdvae.released import released_name, released_order
from ladder.train import checkpoint
from ladder.train.loop import batches, set_up
from ladder.train.state import State, new_state
from ladder.train.step import train_step

WORDS = ["data=digits", "train.batch_size=16", "train.seed=3"]


def trained(steps: int) -> State:
    """A run of the tiny preset, step by step."""
    config = resolve("tiny_vdvae", WORDS)
    state = new_state(config, torch.device("cpu"))
    source = batches(set_up(config, Path("unused")), 0)
    for _ in range(steps):
        train_step(state, next(source), config)
    return state


def released(state: State, folder: Path) -> dict[str, Path]:
    """The files that the released code would have written."""
    config, names = state.model.config, [n for n, _ in state.model.named_parameters()]
    assert state.average is not None
    order = released_order(config)
    weights = dict(zip(names, state.parameters, strict=True))
    average = dict(zip(names, state.average, strict=True))
    moments = {n: state.optimizer.state[p] for n, p in weights.items()}
    group = {"lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8}
    group |= {"weight_decay": 0.0, "initial_lr": 1e-3, "step": state.step}
    content: dict[str, Any] = {
        "model.th": OrderedDict(
            (f"module.{released_name(n, config)}", weights[n].detach()) for n in order
        ),
        "model-ema.th": OrderedDict((released_name(n, config), average[n]) for n in order),
        "opt.th": {
            "state": {
                i: {key: moments[n][key] for key in ("exp_avg", "exp_avg_sq")}
                for i, n in enumerate(order)
            },
            "param_groups": [{**group, "params": list(range(len(order)))}],
        },
    }
    for name, value in content.items():
        torch.save(value, folder / name)
    return {name: folder / name for name in content}


def test_weights_become_a_folder_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = trained(2)
    files = released(state, tmp_path)
    for name, tensors in [("model.th", state.parameters), ("model-ema.th", state.average)]:
        out = tmp_path / f"{name}.out"
        words = ["import", "vdvae", str(files[name]), "--preset", "tiny_vdvae", "--out", str(out)]
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"folder": str(out)}
        model = ladder.from_pretrained(out)
        assert model.config == state.model.config
        assert tensors is not None
        for mine, theirs in zip(model.parameters(), tensors, strict=True):
            assert torch.equal(mine, theirs)


def test_training_goes_on_as_if_it_had_been_ours(tmp_path: Path) -> None:
    files = released(trained(3), tmp_path)
    out = tmp_path / "run"
    words = ["import", "vdvae", str(files["model.th"]), "--preset", "tiny_vdvae", *WORDS]
    words += ["train.steps=5", "--ema", str(files["model-ema.th"])]
    assert main([*words, "--optimizer", str(files["opt.th"]), "--out", str(out)]) == 0
    start = ladder.from_pretrained(out)
    average = trained(3).average
    assert average is not None
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), average, strict=True))
    assert main(["train", "--resume", str(out), "--quiet"]) == 0
    expected, found = trained(5), new_state(resolve(out / "config.resolved.yaml"), CPU)
    checkpoint.restore(out / "checkpoints" / "step-00000005", found)
    for a, b in zip(expected.parameters, found.parameters, strict=True):
        assert torch.equal(a, b)
    assert expected.average is not None
    assert found.average is not None
    assert all(torch.equal(a, b) for a, b in zip(expected.average, found.average, strict=True))


CPU = torch.device("cpu")


def sentence(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return released(trained(1), tmp_path)


def words(files: dict[str, Path], out: Path, *more: str, name: str = "model.th") -> list[str]:
    start = ["import", "vdvae", str(files[name]), "--preset", "tiny_vdvae", "--out", str(out)]
    return [*start, *more]


def test_another_configuration_is_shown_by_layer(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = sentence(capsys, words(files, out, "model.width=20"))
    assert "model.th: the state dict is not of this configuration" in text
    assert (
        "decoder.dec_blocks.0: enc.c1.bias 4, not 5; enc.c1.weight 4x32x1x1, not 5x40x1x1" in text
    )
    assert len(text.splitlines()) <= 10
    assert not out.exists()
    text = sentence(capsys, words(files, out, "--optimizer", str(files["model.th"])))
    assert "model.th: not the state of the released optimiser" in text
    assert not out.exists()


def test_pickles_are_not_executed(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(build_model("tiny_vdvae"), files["model.th"])
    text = sentence(capsys, words(files, tmp_path / "out"))
    assert "not a file of tensors and plain values" in text
    assert len(text.splitlines()) == 1


def test_files_that_are_none(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    whole = files["model.th"].read_bytes()
    files["model.th"].write_bytes(whole[: len(whole) // 2])
    assert "model.th: truncated, or not a file of torch.save" in sentence(
        capsys, words(files, out)
    )
    files["model.th"].write_bytes(b"")
    assert "model.th: " in sentence(capsys, words(files, out))
    files["model.th"].unlink()
    assert "model.th: cannot be read: No such file" in sentence(capsys, words(files, out))
    assert "holds no state dict" in sentence(capsys, words(files, out, name="opt.th"))
    assert not out.exists()


def test_what_does_not_go_together(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ema = str(files["model-ema.th"])
    assert "--ema goes with --optimizer" in sentence(capsys, words(files, out, "--ema", ema))
    start = words(files, out)
    start[1] = "lvae_conv"
    assert "is a model of system 'vdvae', not 'lvae_conv'" in sentence(capsys, start)
    start[1] = "hierarchy"
    assert (
        "nothing was released for system 'hierarchy'; choose from biva, lvae_conv, nvae, vdvae"
        in sentence(capsys, start)
    )
    start[1] = "vdva"
    assert "did you mean 'vdvae'" in sentence(capsys, start)
    out.mkdir()
    (out / "mine").write_text("kept")
    assert "not empty" in sentence(capsys, words(files, out))
    assert (out / "mine").read_text() == "kept"


def test_every_system_with_a_released_layout_imports(tmp_path: Path) -> None:
    model = build_model("tiny_lvae_conv")
    state = {conv_name(name, model.config): t for name, t in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    out = tmp_path / "out"
    start = ["import", "lvae_conv", str(tmp_path / "model.pt"), "--preset", "tiny_lvae_conv"]
    assert main([*start, "--out", str(out)]) == 0
    loaded = ladder.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())


def test_an_optimiser_whose_layout_is_unknown_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model("tiny_lvae_conv")
    state = {conv_name(name, model.config): t for name, t in model.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    start = ["import", "lvae_conv", str(tmp_path / "model.pt"), "--preset", "tiny_lvae_conv"]
    start += ["--optimizer", str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")]
    assert "the optimiser of system 'lvae_conv' is not known" in sentence(capsys, start)
    assert not (tmp_path / "out").exists()


def test_imported_weights_can_be_evaluated_but_not_trained_on(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(files, out)) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--n", "20", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["step"] is None
    assert record["elbo"] < 0.0
    text = sentence(capsys, ["train", "--resume", str(out)])
    assert "imported weights without their optimiser" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_values_are_refused(
    value: float, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(files["model.th"], weights_only=True)
    content["module.decoder.gain"][0, 3] = value
    torch.save(content, files["model.th"])
    text = sentence(capsys, words(files, tmp_path / "out"))
    assert "'module.decoder.gain' holds NaN or infinite values; the file is damaged" in text
    content["module.decoder.gain"] = torch.ones(1, 16, 1, 1, dtype=torch.int64)
    torch.save(content, files["model.th"])
    assert "is torch.int64, torch.strided; give floats" in sentence(
        capsys, words(files, tmp_path / "out")
    )


def test_flipped_bits_are_noticed(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(files["model.th"].read_bytes())
    middle = len(whole) // 2
    for i in range(middle, middle + 64):
        whole[i] ^= 0x10
    files["model.th"].write_bytes(whole)
    text = sentence(capsys, words(files, tmp_path / "out"))
    assert "model.th: " in text
    assert not (tmp_path / "out").exists()
