"""The verb `ood`: from words to a call, from a table to text."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from ladder.detect.run import detect
from ladder.detect.write import markdown, record, write_found

FOLDER = "ood"  # in the run


def run(args: Namespace) -> int:
    """Do what `ladder ood` was asked for.

    Args:
        args: Its words, as the command line describes them.

    Returns:
        The exit code.
    """
    found = detect(
        args.run,
        args.against or (),
        args.overrides,
        split=args.split,
        samples=args.samples,
        n=args.n,
        seed=args.seed,
        tell=lambda name: print(f"{name}: done", file=sys.stderr, flush=True),
    )
    out = args.out or args.run / FOLDER
    write_found(found, out)
    print(f"\n{markdown(found)}", file=sys.stderr)
    print(json.dumps(record(found)) if args.json else out)
    return 0
