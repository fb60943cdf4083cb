"""The verb `ablate`: from words to a call, from a table to text."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Literal

from ladder.ablate.declare import vary_words
from ladder.ablate.run import ablate, declared
from ladder.ablate.write import markdown, record
from ladder.errors import UserError
from ladder.parse import to_yaml


def run(args: Namespace) -> int:
    """Do what `ladder ablate` was asked for.

    Args:
        args: Its words, as the command line describes them.

    Returns:
        The exit code: 1 if a cell failed.
    """
    vary = vary_words(args.vary)
    if args.print_config:
        file = declared(args.target, vary, args.overrides, args.samples, args.n)
        print(to_yaml(file), end="")
        return 0
    table = ablate(
        args.target,
        args.out,
        vary=vary,
        overrides=args.overrides,
        samples=args.samples,
        n=args.n,
        jobs=jobs_word(args.jobs),
        quiet=args.quiet,
    )
    print(f"\n{markdown(table)}", file=sys.stderr)
    print(json.dumps(record(table)) if args.json else table.out)
    failed = len(table.failed)
    if failed:
        print(f"ladder: {failed} of {len(table.cells)} cells failed", file=sys.stderr)
    return 1 if failed else 0


def jobs_word(word: str | None) -> int | Literal["together"] | None:
    """Read `--jobs`: a number, or `together`; raises UserError if it is neither."""
    if word is None or word == "together":
        return word  # type: ignore[return-value]
    if not word.isdecimal():
        raise UserError(f"ablate: --jobs is '{word}', which should be a number, or together")
    return int(word)
