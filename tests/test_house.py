"""The house keeps its shape: one loop, small files, short functions, imports one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ladder

ROOT = Path(ladder.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Lower rooms first; a module imports only from its own rank or from below.
RANKS: list[set[str]] = [
    {"errors", "files", "noise", "execution", "capture", "batch_axis"},
    {"config", "schedules", "distributions"},
    {"parse", "presets", "data", "latent", "released"},
    {"model"},
    {"convolutions", "weightnorm", "batchnorm", "first_pass", "fourier"},
    {"layers", "merges", "priors", "inference", "nets", "flows", "likelihoods", "logistics"},
    {"systems"},
    {"build"},
    {"finite", "walks"},
    {"pretrained", "sampling", "diagnostics", "objectives", "penalties", "ood"},
    {"calibration", "sampler"},
    {"train", "report"},
    {"ablate", "detect", "bench"},
    {"cli", "__main__"},
    {""},  # ladder/__init__.py
]
NOT_IN_THE_TREE = {"utils.py", "base.py", "common.py", "helpers.py", "misc.py"}


def name_of(path: Path) -> str:
    """Dotted name below `ladder`; empty for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def rank(name: str) -> int:
    room = name.split(".")[0]
    return next(i for i, rooms in enumerate(RANKS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Our modules that a file imports when it is imported, by dotted name below `ladder`."""
    own = name_of(path).split(".") if name_of(path) else []
    package = own if path.name == "__init__.py" else own[:-1]
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["ladder", *package][: len(package) + 2 - node.level] if node.level else []
            origin = above + (node.module.split(".") if node.module else [])
            names = [[*origin, a.name] for a in node.names]
        else:
            continue
        for parts in names:
            if parts[0] == "ladder":
                module = ".".join(parts[1:])
                found.add(module if module in MODULES else ".".join(parts[1:-1]))
    return found - {name_of(path)}


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    """Lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize(
    "pattern", [r"evidence\.get\(", r"\.layers\.(items|values)\(\)", r"in self\.layers\b"]
)
def test_the_top_down_loop_stands_once(pattern: str) -> None:
    hits = [
        (path.name, line.strip())
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]
    assert {name for name, _ in hits} <= {"model.py"}, hits
    assert len(hits) <= 1, hits


def test_the_loop_is_where_the_test_above_looks() -> None:
    text = (ROOT / "model.py").read_text(encoding="utf-8")
    assert text.count("evidence.get(") == text.count("self.layers.items()") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: name_of(p) or "ladder")
def test_files_and_functions_are_short(path: Path) -> None:
    assert path.name not in NOT_IN_THE_TREE
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for function in functions(path):
        assert length(function) <= 60, function.name
        arguments = function.args
        given = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
        assert sum(a.arg not in ("self", "cls") for a in given) <= 8, function.name


def test_every_module_has_a_room() -> None:
    rooms = {name.split(".")[0] for name in MODULES}
    assert rooms <= set().union(*RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: name_of(p) or "ladder")
def test_imports_run_one_way(path: Path) -> None:
    own = rank(name_of(path))
    above = [name for name in imports(path) if rank(name) > own]
    assert not above, f"{name_of(path)} imports {above}"


def test_imports_have_no_circle() -> None:
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_relative_imports_are_seen() -> None:
    assert {"config", "errors", "data.arrays"} <= imports(ROOT / "data" / "sets.py")
    assert {"parse", "systems", "model"} <= imports(ROOT / "build.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: name_of(p) or "ladder")
def test_noise_comes_only_from_like(path: Path) -> None:
    # Golden tests, checkpointing and CUDA graphs depend on randn_like and rand_like alone.
    if rank(name_of(path)) in range(rank("latent"), rank("train")) and "data" not in path.parts:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"torch\.(randn|rand|normal|bernoulli|randint)\(", text)
        assert ".item()" not in text
