"""The words of `ladder bench`; reading them needs neither torch nor pydantic."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def describe(parser: ArgumentParser) -> None:
    """Give the parser what `ladder bench` takes.

    Args:
        parser: Changed in place.
    """
    parser.usage = "ladder bench [PRESET_OR_FILE ...] [key=value ...] [--batch N ...] [options]"
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="PRESET_OR_FILE | key=value",
        help="presets or YAML files, a chosen few without any; then changes of all of them",
    )
    add("--batch", type=int, nargs="+", action="extend", help="default: each preset's own")
    add("--device", default="cpu", help="cpu (default), cuda, or auto")
    precisions, modes = ("float32", "tf32", "bfloat16"), ("eager", "compiled", "graph")
    add("--precision", nargs="+", default=["float32"], choices=precisions, help="of the networks")
    add("--mode", nargs="+", default=["eager"], choices=modes, help="how a step is executed")
    add("--windows", type=int, default=5, help="times that are taken; the median counts")
    add("--quick", action="store_true", help="two windows of one training step, and nothing else")
    add("--json", action="store_true", help="the rows as JSON on stdout, instead of a table")
    add("--out", type=Path, metavar="FILE.json", help="write them there, too")
