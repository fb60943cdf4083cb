"""Training steps, sampling, encoding and bounds of presets: speed, compile time, graphs, memory.

    python benchmarks/steps.py step --device cuda --precision float32 tf32 bfloat16 \\
        --mode eager compiled graph --released FOLDER
    python benchmarks/steps.py step --preset tiny_vdvae --batch 8      # a rehearsal
    python benchmarks/steps.py step model.width=256 --batch 4 --recompute off on
    python benchmarks/steps.py step --preset nvae_cifar10 --device cuda --batch 32
    python benchmarks/steps.py step --preset biva_cifar10 --device cuda --released FOLDER
    python benchmarks/steps.py largest --device cuda --preset vdvae_ffhq256 --recompute off on

Every combination runs in a process of its own, one after another, each with the rate of matrix
products measured before and after it, so that a busy machine shows. Steps are the library's own
(`new_state`, `train_step`) on random bytes; a time is the median of windows after a warm-up, with
the device synchronised around each. `--released` adds the released code, which lies in FOLDER, at
the same batch and precision. Words `key=value` change the preset and come before the options.
`ladder bench` measures the same and asks less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import RESULTS

from ladder.bench.case import MODES, PRECISIONS, Case, checked
from ladder.bench.child import OURS, in_a_process
from ladder.bench.command import record
from ladder.bench.measure import How
from ladder.bench.table import markdown
from ladder.build import resolve
from ladder.errors import UserError

Row = dict[str, Any]


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
    add("--precision", nargs="+", default=["float32"], choices=PRECISIONS)
    add("--mode", nargs="+", default=["eager"], choices=MODES)
    add("--backend", default="inductor", help="eager or aot_eager count graphs, but write no code")
    add("--recompute", nargs="*", default=["off"], choices=["off", "on"], help="alone: on")
    add("--channels-last", action=argparse.BooleanOptionalAction)
    add("--released", metavar="FOLDER", help="of the released VD-VAE's vae.py, or BIVA's biva")
    add("--windows", type=int, default=5)
    add("--steps", type=int, default=5, help="in a window")
    add("--warmup", type=int, default=3, help="steps, after the first")
    add("--sample-batch", type=int, default=64, help="0 draws no samples")
    add("--samples", type=int, default=64, help="K of the bound; 0 leaves it and encoding out")
    add("--limit-gib", type=float, help="memory that a process may take")
    add("--least", type=int, default=1, help="batch that `largest` tries first")
    add("--most", type=int, default=4096, help="batch that it does not go beyond")
    add("--timeout", type=float, help="seconds for a combination")
    add("--name", help="of the file; default: the first preset's system")
    add("--note", help="a sentence that is kept with the runs, such as what else was running")
    add("--append", action="store_true", help="keep the runs that are in the file")
    arguments = parser.parse_intermixed_args(words)
    if arguments.what == "largest" and (arguments.mode != ["eager"] or arguments.released):
        parser.error("largest tries many batches, and each would be compiled anew: eager, ours")
    return arguments


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Every combination; the released code is timed once where our modes differ."""
    recompute = [word == "on" for word in arguments.recompute or ["on"]]
    for preset, batch, precision in itertools.product(
        arguments.preset, arguments.batch, arguments.precision
    ):
        own = resolve(preset, arguments.overrides).train.batch_size
        case = Case(preset, arguments.overrides, batch or own, arguments.device, precision)
        case = case._replace(channels_last=arguments.channels_last, backend=arguments.backend)
        for mode, again in itertools.product(arguments.mode, recompute):
            yield "ladder", checked(case._replace(mode=mode, recompute=again))
        if arguments.released:
            yield "released", case._replace(channels_last=None)


def command(code: str, folder: str | None) -> list[str]:
    """What measures a case of this code."""
    if code == "ladder":
        return list(OURS)
    return [sys.executable, str(Path(__file__).with_name("released_child.py")), folder or "."]


def run(code: str, case: Case, how: How, arguments: argparse.Namespace) -> Row:
    """A row of the results."""
    words = command(code, arguments.released)
    found = in_a_process(arguments.what, case, how, arguments.timeout, words)
    extra = {"limit_gib": how.limit_gib, "note": arguments.note}
    return {"code": code, **found, **{k: v for k, v in extra.items() if v is not None}}


def target(arguments: argparse.Namespace) -> Path:
    """The file of the results."""
    name = arguments.name or resolve(arguments.preset[0]).model.system
    name = name if arguments.what == "step" else f"{name}-largest"
    device, version = arguments.device.split(":")[0], torch.__version__.split("+")[0]
    dtype = arguments.precision[0] if len(arguments.precision) == 1 else "all"
    return RESULTS / f"benchmark-{name}-{device}-{dtype}-pt{version}.json"


def write(path: Path, rows: list[Row]) -> None:
    """The machine, as it was seen where it was measured, and all rows."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record(rows), indent=2) + "\n")


def earlier(path: Path) -> list[Row]:
    """The rows of a file, as `write` takes them."""
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    return [{"machine": content["machine"], **row} for row in content["runs"]]


def main(words: list[str] | None = None) -> None:
    arguments = parse(words)
    fields = {name: value for name, value in vars(arguments).items() if name in How._fields}
    how, path = How(**fields), target(arguments)
    rows = earlier(path) if arguments.append else []
    before = len(rows)
    try:
        chosen = list(cases(arguments))
    except UserError as error:
        raise SystemExit(str(error)) from None
    for code, case in chosen:
        rows.append(run(code, case, how, arguments))
        write(path, rows)  # each, because a later one may take the machine down
        print(markdown(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(markdown(rows[before:]))
    print(path)


if __name__ == "__main__":
    main()
