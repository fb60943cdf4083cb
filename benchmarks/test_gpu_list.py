"""The commands for a GPU are ones that their scripts understand; `--tiny` runs them."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import gpu_list
import pytest


class Understood(Exception):
    """The words were parsed."""


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", gpu_list.ITEMS)
def test_every_command_is_one(name: str, tiny: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)

        def parsed(parser: argparse.ArgumentParser, *words: Any, parse: Any = parse) -> None:
            parse(parser, *words)
            raise Understood

        monkeypatch.setattr(argparse.ArgumentParser, method, parsed)
    _, script, *words = gpu_list.command(name, "cpu" if tiny else "cuda", tiny, "folder")
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Understood):
        runpy.run_path(script, run_name="__main__")
    assert ("--released" in words) == (name in ("3", "4-biva"))
    assert Path(script).parent == gpu_list.HERE
