"""The verb `ood`: from words to a call, from a table to text."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from ladder.detect.run import detect
from ladder.detect.write import markdown, record, write_found
from ladder.errors import UserError

FOLDER = "ood"  # in the run


def run(args: Namespace) -> int:
    """Do what `ladder ood` was asked for.

    Args:
        args: Its words, as the command line describes them.

    Returns:
        The exit code.
    """
    out = args.out or args.run / FOLDER
    if out.exists() and not out.is_dir():
        raise UserError(f"ood: --out: {out} is a file; name a folder")
    # `--against NAME key=value` takes the override for a name, though only a path could be one.
    names = args.against or []
    words = [name for name in names if "=" in name and not Path(name).exists()]
    found = detect(
        args.run,
        [name for name in names if name not in words],
        [*args.overrides, *words],
        split=args.split,
        samples=args.samples,
        n=args.n,
        seed=args.seed,
        tell=lambda name: print(f"{name}: done", file=sys.stderr, flush=True),
    )
    write_found(found, out)
    print(f"\n{markdown(found)}", file=sys.stderr)
    print(json.dumps(record(found)) if args.json else out)
    return 0
