"""The tables that are committed are those of the results that are committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.parent.name)
def test_pages_say_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text, page.parent) == text, "run: python benchmarks/tables.py"


def test_figures_are_there() -> None:
    for result in tables.read():
        if result.name in ("depth", "plain", "precisions"):
            assert result.path.with_suffix(".png").is_file(), result.path.name


def test_what_the_page_names_is_there() -> None:
    text = tables.PAGES[1].read_text(encoding="utf-8")
    named = set(re.findall(r"\b(\w+\.py)\b", text)) - {"vae.py"}
    assert {"steps.py", "depth.py", "gpu_list.py"} <= named
    for name in named:
        assert (tables.PAGES[1].parent / name).is_file(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (tables.PAGES[1].parent / link).is_file(), link


def test_results_have_their_machine_and_no_name_of_it() -> None:
    for result in tables.read():
        assert {"cpu", "threads", "torch"} <= set(result.content["machine"]), result.path.name
        assert not {"node", "host"} & set(result.content["machine"])
        assert not re.search(r'"/(work|tmp|home|root)/', json.dumps(result.content))


def test_a_page_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tables.PAGES[1].parent
    machine = {"cpu": "A", "threads": 1, "torch": "2"}
    content = {"machine": machine, "rows": [{"model": "m", "s": 0.12345, "at": [1], "note": "x"}]}
    result = tables.Result(base / "results" / "some.json", "some", content)
    monkeypatch.setattr(tables, "read", lambda: [result])
    page = "a\n<!-- table:some -->\nold\n<!-- end -->\n<!-- table:none -->\n<!-- end -->\nb\n"
    once = tables.filled(page, base)
    assert once.splitlines() == [
        *("a", "<!-- table:some -->", "| model | s |", "| --- | ---: |", "| m | 0.123 |", ""),
        "A, 1 thread, torch 2; [every number](results/some.json). X.",
        *("<!-- end -->", "<!-- table:none -->", "Not measured yet.", "<!-- end -->", "b"),
    ]
    assert tables.filled(once, base) == once
    assert "(benchmarks/results/some.json)" in tables.filled(page, tables.ROOT)
