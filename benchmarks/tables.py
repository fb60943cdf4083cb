"""Tables and figures of the README and of `benchmarks/README.md`, from `results/*.json`.

    python benchmarks/tables.py           # writes them
    python benchmarks/tables.py --check   # says whether they are what the results make of them

A table stands between `<!-- table:NAME -->` and `<!-- end -->`; NAME is one of `TABLES`, or the
NAME of files `results/benchmark-NAME-*.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import depth
from conftest import RESULTS

from ladder.bench.table import COLUMNS as STEP_COLUMNS
from ladder.bench.table import SAME, cell, environment
from ladder.report.canvas import new_figure, plain, png

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
MARKED = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMED = re.compile(r"benchmark-(.+)-(cpu|cuda)-(?:float32|tf32|bfloat16|all)-pt.*\.json")
Row = dict[str, Any]

COLUMNS: dict[str, dict[str, str]] = {
    "plain": {
        "preset": "model",
        "batch": "batch",
        "precision": "precision",
        "mode": "mode",
        "plain_cpu_seconds": "plain loop, CPU s/step",
        "cpu_seconds": "ours",
        "cpu_ratio": "times as fast",
        "plain_share": "share of float32 matmul, plain",
        "share": "ours",
    },
    "mnist-2layer-modes": {
        "batch": "batch",
        "mode": "mode",
        "images_per_s": "images/s",
        "of_the_notebook": "time of the notebook's",
        "of_the_notebook_by_cpu_time": "by CPU time",
        "share": "share of matmul",
        "epochs": "epochs",
        "seconds": "s, all epochs",
        "loss": "loss at the end, nats",
    },
    "suite": {
        "name": "test",
        "median_seconds": "median, s",
        "iqr_seconds": "quartiles apart, s",
        "rounds": "rounds",
        "graphs": "graphs",
    },
    "fourier": {
        "batch": "batch",
        "out": "outputs",
        "kernel": "kernel",
        "direct": "direct, CPU s",
        "fourier": "Fourier, CPU s",
        "ratio": "times as fast",
        "differs": "largest difference",
    },
    "scaling": {
        "preset": "model",
        "batch": "batch",
        "scaling": "scaling",
        "processes": "processes",
        "images_per_s_one": "images/s of one",
        "images_per_s": "images/s of all",
        "efficiency": "efficiency",
        "cpu_efficiency": "efficiency, CPU time",
        "exchange_seconds": "all-reduce, s",
        "bus_gb_per_s": "GB/s",
    },
    "together": {
        "preset": "model",
        "models": "models",
        "batch": "batch",
        "times_as_fast": "times as fast",
        "times_as_fast_by_cpu_time": "by CPU time",
    },
    "precisions": {
        "precision": "precision",
        "minutes": "minutes",
        "steps": "steps",
        "images_per_s": "images/s",
        "first_bpd": "bits/dim, first",
        "bpd": "bits/dim, last",
    },
}


class Result(NamedTuple):
    """A file of results.

    Attributes:
        path: Where it is.
        name: What was measured.
        content: What it says.
    """

    path: Path
    name: str
    content: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        """One for each combination that was measured."""
        for key in ("rows", "runs"):
            if isinstance(self.content.get(key), list):
                return list(self.content[key])
        return [{k: v for k, v in self.content.items() if k not in ("machine", "note", "what")}]


def read() -> list[Result]:
    """All results, by name, processors before GPUs."""
    found = []
    for path in sorted(RESULTS.glob("benchmark-*.json")):
        name = NAMED.fullmatch(path.name)
        if name is not None:
            found.append(Result(path, name[1], json.loads(path.read_text(encoding="utf-8"))))
    return found


def named(name: str, base: Path) -> str:
    """A table for each file of this name, with its machine."""
    results = [result for result in read() if result.name == name]
    return "\n\n".join(
        f"{grid(result.rows, columns(result))}\n\n{caption(result, base)}" for result in results
    )


def columns(result: Result) -> dict[str, str]:
    """What is shown of a file: what is said for its name, or all of its plain values."""
    chosen = COLUMNS.get(result.name)
    if chosen is None and all(
        {"seconds_per_step", "largest_batch", "failed"} & {*row} for row in result.rows
    ):
        chosen = {key: head for key, head in STEP_COLUMNS.items() if key not in shared(result)}
    if chosen is None:
        plain_values = {k: v for row in result.rows for k, v in row.items() if is_plain(v)}
        chosen = {key: key.replace("_", " ") for key in plain_values if key != "note"}
    given = {key for row in result.rows for key, value in row.items() if value not in (None, [])}
    return {key: head for key, head in chosen.items() if key in given}


def shared(result: Result) -> dict[str, str]:
    """What all steps of a file were measured with, which its caption says once."""
    if "seconds_per_step" not in result.rows[0] or len(result.rows) == 1:
        return {}
    return {
        key: cell(result.rows[0][key])
        for key in SAME
        if result.rows[0].get(key) not in (None, [])
        and all(row.get(key) == result.rows[0][key] for row in result.rows)
    }


def is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) or value is None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def grid(rows: list[Row], heads: dict[str, str]) -> str:
    """A Markdown table; numbers to the right."""
    numbers = {key for key in heads if any(is_number(row.get(key)) for row in rows)}
    lines = [list(heads.values()), ["---:" if k in numbers else "---" for k in heads]]
    lines += [[cell(row.get(key)) for key in heads] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(result: Result, base: Path) -> str:
    """Machine, notes and file."""
    machine = result.content.get("machine")
    where = f"{environment(machine)}; " if machine else ""
    notes = [result.content.get("note"), *(row.get("note") for row in result.rows)]
    said = "".join(sentence(note) for note in dict.fromkeys(notes) if note)
    said += sentence(", ".join(f"{STEP_COLUMNS[key]} {v}" for key, v in shared(result).items()))
    link = result.path.relative_to(ROOT)
    link = link.relative_to(base.relative_to(ROOT)) if base != ROOT else link
    return f"{where}[every number]({link.as_posix()}).{said}"


def sentence(text: str) -> str:
    """With a capital and a full stop, after a space; nothing of nothing."""
    return f" {text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def speed(base: Path) -> str:
    """The best way of every model in each precision, beside a plain loop."""
    tables = []
    for result in (r for r in read() if r.name == "plain"):
        best: dict[tuple[str, str], Row] = {}
        for row in result.rows:
            name = row["preset"], row["precision"]
            if name not in best or row["cpu_ratio"] > best[name]["cpu_ratio"]:
                best[name] = row
        heads = {
            "preset": "model",
            "batch": "batch",
            "precision": "precision",
            "mode": "mode",
            "cpu_seconds": "s/step",
            "cpu_ratio": "times a plain loop's speed",
            "share": "share of float32 matmul",
        }
        tables.append(f"{grid(list(best.values()), heads)}\n\n{caption(result, base)}")
    return "\n\n".join(tables)


def depths(base: Path) -> str:
    """What a layer costs, and how straight the lines are."""
    tables = []
    for result in (r for r in read() if r.name == "depth"):
        rows = []
        for run in result.rows:
            graphs = sorted({*run["graphs"].values()})
            rows.append(
                {
                    "layers": run["kind"],
                    "mode": run["mode"],
                    f"{run['clock'].replace('seconds', 'ms')} a layer": 1e3
                    * run["time_line"]["slope"],
                    "R²": f"{run['time_line']['r_squared']:.4f}",
                    "MiB kept a layer": run["kept_line"]["slope"],
                    "R² of it": f"{run['kept_line']['r_squared']:.4f}",
                    "peak MiB a layer": run["peak_line"]["slope"],
                    "R² of that": f"{run['peak_line']['r_squared']:.4f}",
                    "graphs": " to ".join(map(str, {graphs[0]: 0, graphs[-1]: 0})),
                    "breaks": max(run["graph_breaks"].values()),
                }
            )
        heads = {key: key for key in rows[0]}
        tables.append(f"{grid(rows, heads)}\n\n{caption(result, base)}")
    return "\n\n".join(tables)


def importance(base: Path) -> str:
    """The bound of 10,000 images with K = 5000: what an image takes, each way."""
    tables = []
    for result in (r for r in read() if r.name == "importance"):
        rows = [
            {
                "model": preset,
                "K": run["samples"],
                "way": way,
                "CPU s/image": seconds,
                "times as fast": run["times_as_fast"][way],
                "share of matmul": run["median_share_of_matrix_rate"][way],
                "hours, 10,000 images of K = 5000": run["hours_for_10000_images_of_5000_samples"][
                    way
                ],
                "peak GiB": run["peak_gib"].get(way),
            }
            for preset, run in result.content["presets"].items()
            for way, seconds in run["median_seconds_per_image"].items()
        ]
        tables.append(f"{grid(rows, {key: key for key in rows[0]})}\n\n{caption(result, base)}")
    return "\n\n".join(tables)


def penalties(base: Path) -> str:
    """What the penalties add to a step."""
    tables = []
    for result in (r for r in read() if r.name == "penalties"):
        run = result.content
        rows = [
            {
                "model": run["preset"],
                "batch": run["batch"],
                "penalties": kind,
                "s/step": seconds,
                "CPU s/step": run["median_cpu_seconds"][kind],
                "added": run["added_share_of_seconds"][kind],
                "added, CPU": run["added_share_of_cpu_seconds"][kind],
            }
            for kind, seconds in run["median_seconds"].items()
        ]
        tables.append(f"{grid(rows, {key: key for key in rows[0]})}\n\n{caption(result, base)}")
    return "\n\n".join(tables)


TABLES: dict[str, Callable[[Path], str]] = {
    "speed": speed,
    "depth": depths,
    "importance": importance,
    "penalties": penalties,
}


def filled(text: str, base: Path) -> str:
    """A page with its tables as the results make them.

    Args:
        text: The page.
        base: Its folder, from which links go.
    """

    def table(match: re.Match[str]) -> str:
        name = match[2]
        content = TABLES[name](base) if name in TABLES else named(name, base)
        return f"{match[1]}{content or 'Not measured yet.'}\n{match[3]}"

    return MARKED.sub(table, text)


def figures() -> dict[Path, bytes]:
    """Pictures by path."""
    found = {}
    for result in read():
        if result.name == "depth":
            found[result.path.with_suffix(".png")] = depth.picture(result.rows)
        if result.name == "plain":
            found[result.path.with_suffix(".png")] = bars(result.rows)
    return found


def bars(rows: list[Row]) -> bytes:
    """Speed beside a plain loop: a bar for each model and way."""
    ways = list(dict.fromkeys((row["precision"], row["mode"]) for row in rows))
    models = list(dict.fromkeys(row["preset"] for row in rows))
    figure = new_figure(7.2, 0.9 + 0.42 * len(models) * max(1, len(ways) / 2))
    axes = figure.subplots()
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        values = {
            models.index(row["preset"]): row["cpu_ratio"]
            for row in rows
            if (row["precision"], row["mode"]) == way
        }
        places = [place + (number - (len(ways) - 1) / 2) * height for place in values]
        drawn = axes.barh(places, list(values.values()), 0.9 * height, label=", ".join(way))
        labels = axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        for label in labels:  # readable across lines
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    plain(axes, "Training steps beside a plain loop", "times as fast", "")
    axes.axvline(1.0, color="0.3", linewidth=1)
    axes.axvline(1.5, color="0.3", linewidth=1, linestyle=":")
    axes.locator_params(axis="x", integer=False, nbins=8)
    axes.set_xlim(0, 1.12 * max(1.6, *(row["cpu_ratio"] for row in rows)))
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(models)), [Path(name).stem for name in models])
    axes.invert_yaxis()
    if len(ways) > 1:
        axes.legend(frameon=False, fontsize=9)
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if they differ")
    check = parser.parse_args().check
    old = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, page.parent)
        old += [] if new == text else [str(page.relative_to(ROOT))]
        if not check and new != text:
            page.write_text(new, encoding="utf-8")
    if check:
        for name in old:
            print(f"{name}: its tables are not those of results/; run python benchmarks/tables.py")
        sys.exit(1 if old else 0)
    for path, content in figures().items():
        path.write_bytes(content)


if __name__ == "__main__":
    main()
