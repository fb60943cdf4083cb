"""What the README and the files beside it say is true of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder import cli
from ladder.ablate.declare import declare
from ladder.ablate.grid import grid
from ladder.build import build_model, resolve
from ladder.parse import read_yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert list(names["latents"]) == ["z2", "z1"]
    assert (tmp_path / "my-ladder/model.safetensors").is_file()


def test_the_yaml_builds() -> None:
    (text,) = blocks("yaml")
    with torch.device("meta"):
        model = build_model(config=resolve(read_yaml(text, "README.md")))
    assert list(model.top_down.layers) == [f"z{i}" for i in range(9, 0, -1)]


def test_every_command_is_one() -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    commands = [part for line in lines for part in re.findall(r"ladder [a-z]+[^&]*", line)]
    assert len(commands) >= 5
    for command in commands:
        verb, *words = shlex.split(command)[1:]
        parser = cli._Parser(prog=verb)
        cli.VERBS[verb][1](parser)
        arguments = parser.parse_intermixed_args(words)
        if getattr(arguments, "target", None) == "mnist_2layer":
            resolve(arguments.target, arguments.overrides)


def test_the_pictures_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_the_first_and_the_test_command_are_those_of_ci() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "pip install -e '.[dev]' && pytest" in README
    assert "pip install . && ladder train mnist_2layer data=digits" in README
    assert "ladder train mnist_2layer data=digits" in ci


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ABLATIONS = [p for p in CONFIGS if "vary" in read_yaml(p.read_text(encoding="utf-8"), p.name)]


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_cell_of_every_ablation_builds(path: Path) -> None:
    cells = grid(declare(path, {"train.seed": [0]}))
    assert len(cells) > 1
    for cell in cells:
        assert cell.error is None, cell.error
        with torch.device("meta"):
            model = build_model(config=cell.config)
            model(torch.zeros(2, *model.config.shape))


@pytest.mark.parametrize("path", [p for p in CONFIGS if p not in ABLATIONS], ids=lambda p: p.stem)
def test_every_configuration_builds(path: Path) -> None:
    with torch.device("meta"):
        model = build_model(config=path)
        model(torch.zeros(2, *model.config.shape))
