"""The verb `bench`: from words to cases, from rows to a table."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ladder.bench.case import Case, checked
from ladder.bench.child import in_a_process
from ladder.bench.measure import How
from ladder.bench.table import Row, cell, environment, text
from ladder.build import resolve
from ladder.capture import WARM_UPS
from ladder.errors import UserError
from ladder.files import write_atomic

CHOSEN = ("mnist_2layer", "tiny_lvae_conv", "tiny_vdvae", "tiny_nvae", "tiny_biva")
INSTEAD = {  # words that would be laid over by what an option says, or change nothing
    "train.device": "--device",
    "train.precision": "--precision",
    "train.compile": "--mode eager compiled",
    "train.cuda_graph": "--mode graph",
    "train.recompute": "nothing; benchmarks/steps.py --recompute measures that",
    "train.batch_size": "--batch",
    "data": "nothing; the data are random",
}
QUICK = How(windows=2, steps=1, warmup=WARM_UPS, sample_batch=0, samples=0)


def run(args: Namespace) -> int:
    """Do what `ladder bench` was asked for.

    Args:
        args: Its words, as `describe` takes them.

    Returns:
        The exit code: 1 if a case failed.
    """
    if args.windows < 1:
        raise UserError(f"bench: --windows: {args.windows} should be at least 1")
    if args.out is not None and not (args.out.suffix == ".json" and args.out.parent.is_dir()):
        raise UserError(f"bench: --out: {args.out} should be a .json file in a folder there is")
    how = QUICK if args.quick else How(windows=args.windows)
    rows = []
    for case in list(cases(args)):  # all of them are checked before the first one runs
        rows.append(in_a_process("step", case, how))
        print(told(rows[-1]), file=sys.stderr, flush=True)
    found: dict[str, Any] = {**record(rows), "how": how._asdict()}
    if args.out is not None:
        write_atomic(args.out, json.dumps(found, indent=2) + "\n")
    above = environment(found["machine"]) + "\n" if found["machine"] else ""
    print(json.dumps(found) if args.json else above + text(rows))
    failed = sum("failed" in row for row in rows)
    if failed:
        print(f"ladder: {failed} of {len(rows)} cases failed", file=sys.stderr)
    return 1 if failed else 0


def cases(args: Namespace) -> Iterator[Case]:
    """Every combination of what was named.

    Args:
        args: The verb's words.

    Yields:
        Cases that can run here.

    Raises:
        UserError: If one cannot.
    """
    words = [word for word in args.words if "=" in word and not Path(word).exists()]
    for word in words:
        name = word.partition("=")[0]
        if name in INSTEAD:
            raise UserError(f"bench: {name}: give {INSTEAD[name]}")
    targets = [word for word in args.words if word not in words] or CHOSEN
    for target, precision, mode in product(targets, args.precision, args.mode):
        own = resolve(target, words).train.batch_size
        for batch in args.batch or [own]:
            yield checked(Case(target, words, batch, args.device, precision, mode))


def record(rows: Sequence[Row]) -> dict[str, Any]:
    """The machine, as it was seen where it was measured, and all rows."""
    seen = [row["machine"] for row in rows if row.get("machine")]
    apart = [{k: v for k, v in row.items() if k != "machine"} for row in rows]
    return {"machine": seen[-1] if seen else None, "runs": apart}


def told(row: Row) -> str:
    """One line of progress."""
    what = f"{row['preset']}, batch {row['batch']}, {row['precision']}, {row['mode']}"
    if "failed" in row:
        return f"{what}: {row['failed']}"
    return f"{what}: {cell(row['images_per_s'])} images/s"
