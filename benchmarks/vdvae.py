"""Training steps and sampling of VD-VAE and other presets: speed, compile time, graphs, memory.

    python benchmarks/vdvae.py step --device cuda --precision float32 tf32 bfloat16 \\
        --mode eager compiled --released FOLDER
    python benchmarks/vdvae.py step --preset tiny_vdvae --batch 8      # a rehearsal
    python benchmarks/vdvae.py step model.width=256 --batch 4 --recompute off on
    python benchmarks/vdvae.py step --preset nvae_cifar10 --device cuda --batch 32
    python benchmarks/vdvae.py step --preset biva_cifar10 --device cuda --released FOLDER
    python benchmarks/vdvae.py largest --device cuda --preset vdvae_ffhq256 --recompute off on

Every combination runs in a process of its own, one after another, each with the rate of matrix
products measured before and after it, so that a busy machine shows. Steps are the library's own
(`new_state`, `train_step`) on random bytes; a time is the median of windows after a warm-up, with
the device synchronised around each. `--released` adds the released code, which lies in FOLDER, at
the same batch and precision. Words `key=value` change the preset and come before the options.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import vdvae_child
from conftest import RESULTS
from vdvae_child import NO_MEMORY, How
from vdvae_models import Case

from ladder.build import resolve

COLUMNS = {
    "code": "code",
    "preset": "preset",
    "batch": "batch",
    "precision": "precision",
    "mode": "mode",
    "recompute": "recompute",
    "images_per_s": "images/s",
    "seconds_per_step": "s/step",
    "cpu_seconds_per_step": "CPU s/step",
    "first_step_seconds": "first step, s",
    "graphs": "graphs",
    "peak_memory_gib": "peak GiB",
    "tflops_per_step": "TFLOP/step",
    "share_of_matrix_rate": "share of matmul",
    "best_matrix_rate_gflops": "matmul, GFLOP/s",
    "samples_per_s": "samples/s",
    "largest_batch": "largest batch",
    "most": "of at most",
    "failed": "failed",
}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=["step", "largest"])
    add("overrides", nargs="*", metavar="key=value")
    add("--preset", nargs="+", default=["vdvae_cifar10"])
    add("--batch", type=int, nargs="+", default=[0], help="0 is the preset's own (default)")
    add("--device", default="cpu")
    add(
        "--precision",
        nargs="+",
        default=["float32"],
        choices=["float32", "tf32", "bfloat16"],
    )
    add("--mode", nargs="+", default=["eager"], choices=["eager", "compiled"])
    add("--backend", default="inductor", help="eager or aot_eager count graphs, but write no code")
    add("--recompute", nargs="*", default=["off"], choices=["off", "on"], help="alone: on")
    add("--channels-last", action=argparse.BooleanOptionalAction)
    add("--released", metavar="FOLDER", help="of the released VD-VAE's vae.py, or BIVA's biva")
    add("--windows", type=int, default=5)
    add("--steps", type=int, default=5, help="in a window")
    add("--warmup", type=int, default=3, help="steps, after the first")
    add("--sample-batch", type=int, default=64, help="0 draws no samples")
    add("--limit-gib", type=float, help="memory that a process may take")
    add("--least", type=int, default=1, help="batch that `largest` tries first")
    add("--most", type=int, default=4096, help="batch that it does not go beyond")
    add("--timeout", type=float, help="seconds for a combination")
    add("--note", help="a sentence that is kept with the runs, such as what else was running")
    add("--append", action="store_true", help="keep the runs that are in the file")
    arguments = parser.parse_intermixed_args(words)
    if "tf32" in arguments.precision and not arguments.device.startswith("cuda"):
        parser.error("tf32 is a precision of GPUs")
    if arguments.what == "largest" and (arguments.mode != ["eager"] or arguments.released):
        parser.error("largest tries many batches, and each would be compiled anew: eager, ours")
    return arguments


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Every combination; the released code is timed once where our modes differ."""
    recompute = [word == "on" for word in arguments.recompute or ["on"]]
    for preset, batch, precision in itertools.product(
        arguments.preset, arguments.batch, arguments.precision
    ):
        own = resolve(preset, arguments.overrides).train.batch_size
        case = Case(preset, arguments.overrides, batch or own, arguments.device, precision)
        case = case._replace(channels_last=arguments.channels_last, backend=arguments.backend)
        for mode, again in itertools.product(arguments.mode, recompute):
            yield case._replace(mode=mode, recompute=again)
        if arguments.released:
            yield case._replace(code="released", channels_last=None)


def in_a_process(task: str, case: Case, how: How, timeout: float | None = None) -> dict[str, Any]:
    """What the measurement prints, or how it failed."""
    words = [json.dumps(word) for word in (task, case._asdict(), how._asdict())]
    with tempfile.TemporaryDirectory() as cache:  # what was compiled before must not help
        command = [sys.executable, vdvae_child.__file__, *words]
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, env=env, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {timeout:.0f} s"}
    if done.returncode:
        over = "over the limit of memory"
        return {"failed": over if done.returncode == NO_MEMORY else f"exit {done.returncode}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run(what: str, case: Case, how: How, flops: int, timeout: float | None) -> dict[str, Any]:
    """A row of the results."""
    found = in_a_process(what, case, how, timeout)
    row = {**case._asdict(), **found}
    if what == "step" and "failed" not in found:
        best = max(found["matrix_rate_gflops"])
        share = flops / found["seconds_per_step"] / (best * 1e9)
        row |= {"steps_in_a_window": how.steps, "warmup": how.warmup}
        row |= {"best_matrix_rate_gflops": best, "share_of_matrix_rate": share}
        row |= {"tflops_per_step": flops / 1e12}
    if how.limit_gib is not None:
        row["limit_gib"] = how.limit_gib
    return row


def target(arguments: argparse.Namespace) -> Path:
    """The file of the results."""
    system = resolve(arguments.preset[0]).model.system
    name = system if arguments.what == "step" else f"{system}-largest"
    device, version = arguments.device.split(":")[0], torch.__version__.split("+")[0]
    dtype = arguments.precision[0] if len(arguments.precision) == 1 else "all"
    return RESULTS / f"benchmark-{name}-{device}-{dtype}-pt{version}.json"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The machine, as it was seen where it was measured, and all rows."""
    seen = [row["machine"] for row in rows if row.get("machine")]
    apart = [{k: v for k, v in row.items() if k != "machine"} for row in rows]
    path.parent.mkdir(exist_ok=True)
    content = {"machine": seen[-1] if seen else None, "runs": apart}
    path.write_text(json.dumps(content, indent=2) + "\n")


def earlier(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, as `write` takes them."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    return [{"machine": content["machine"], **row} for row in content["runs"]]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown; a column that all leave empty is left out."""
    shown = {k: v for k, v in COLUMNS.items() if any(row.get(k) is not None for row in rows)}
    lines = [list(shown.values()), ["---"] * len(shown)]
    lines += [[cell(row.get(key)) for key in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value with three digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def main() -> None:
    arguments = parse()
    fields = {name: value for name, value in vars(arguments).items() if name in How._fields}
    how, path = How(**fields), target(arguments)
    rows = earlier(path) if arguments.append else []
    before, flops = len(rows), {}
    for case in cases(arguments):
        key = case.preset
        if arguments.what == "step" and key not in flops:
            per_datum = in_a_process("flops", case._replace(batch=1), how)
            flops[key] = per_datum.get("flops_per_step", 0)
        count = case.batch * flops.get(key, 0)
        rows.append(run(arguments.what, case, how, count, arguments.timeout))
        if arguments.note:
            rows[-1]["note"] = arguments.note
        write(path, rows)  # each, because a later one may take the machine down
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows[before:]))
    print(path)


if __name__ == "__main__":
    main()
