"""The verb `train`: from words to a run, from a run to text."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from ladder.build import resolve
from ladder.config import Config, ModelConfig
from ladder.errors import UserError, WorkFailed
from ladder.parse import to_yaml
from ladder.presets import list_presets
from ladder.report import write_report
from ladder.train import run as records
from ladder.train.loop import fit
from ladder.train.penalising import check_objective
from ladder.train.summary import summary_json, summary_text
from ladder.train.world import found


def run(args: Namespace) -> int:
    """Do what `ladder train` was asked for.

    Args:
        args: Its words, as the command line describes them.

    Returns:
        The exit code.
    """
    config, out, resume = _what_to_train(args)
    if args.print_config:
        return print_config(config)
    given = "" if resume else _given(args)
    summary = fit(config, out, given=given, resume=resume, quiet=args.quiet)
    if not found().leads:  # of several processes one speaks
        return 0
    out = summary.run
    try:
        pictures = write_report(out)
    except (UserError, WorkFailed, OSError) as error:  # the model is trained and safe all the same
        pictures = []
        reason = f"{error}; try 'ladder report {out}'"
        print(f"ladder: the report could not be written: {reason}", file=sys.stderr)
    print(summary_text(config, summary), file=sys.stderr)
    print(json.dumps(summary_json(summary, pictures)) if args.json else out)
    return 0


def _what_to_train(args: Namespace) -> tuple[Config[ModelConfig], Path, bool]:
    if args.resume is not None:
        words = [w for w in (args.target, *args.overrides) if w is not None]
        if args.target is not None and "=" not in args.target:
            raise UserError("ladder train: --resume RUN takes no preset or file, only key=value")
        if args.out is not None:
            raise UserError("ladder train: --out and --resume exclude each other")
        return records.read_config(args.resume, words), args.resume, True
    if args.target is None:
        raise UserError("ladder train: name a preset or a YAML file, or --resume RUN")
    config = resolve(args.target, args.overrides)
    wish = config.train.resume
    if isinstance(wish, str) and wish != "auto":
        return _going_on(config, Path(wish), args), Path(wish), True
    if wish == "auto" and args.out is None:
        raise UserError("train.resume: auto needs to know the run; give it with --out")
    out = args.out or records.default_path(config)
    there = (out / records.RESOLVED).is_file()
    if wish is True and not there:
        raise UserError(f"train.resume: nothing to resume in {out}; 'auto' starts a new run then")
    return config, out, bool(wish) and there


def _going_on(config: Config[ModelConfig], run: Path, args: Namespace) -> Config[ModelConfig]:
    """The configuration of the run that `train.resume` names, if it is what was asked for."""
    if args.out is not None:
        raise UserError(
            f"train.resume: goes on in {run}; leave --out away, or give train.resume=auto"
        )
    own = records.read_config(run, args.overrides)
    if own.model != config.model:
        raise UserError(f"train.resume: {run} is a run of another model than {args.target}")
    return own


def _given(args: Namespace) -> str:
    preset = args.target in list_presets()
    text = f"preset: {args.target}\n" if preset else Path(args.target).read_text(encoding="utf-8")
    return "".join([text, *(f"# {word}\n" for word in args.overrides)])


def print_config(config: Config[ModelConfig]) -> int:
    """Print the whole configuration, if its objective fits its model."""
    check_objective(config)
    print(to_yaml(config), end="")
    return 0
