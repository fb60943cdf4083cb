"""`ladder VERB [target] [key=value ...]`: reads words, calls the library, prints.

A person's text goes to stderr; stdout carries results only. Nothing heavy is imported before a
verb needs it. Exit codes: 0 done, 1 the work failed, 2 usage or configuration, 130 and 143 after
SIGINT and SIGTERM with a checkpoint, 75 at a time limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ladder.bench import words as bench
from ladder.errors import SaidByTheFirst, UserError, WorkFailed, suggest

Arguments = argparse.Namespace
ALONE = ("ablate", "bench", "evaluate", "import", "ood", "report", "sample")


class _Parser(argparse.ArgumentParser):
    """Errors are one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see '{self.prog} --help'")


def entry() -> NoReturn:
    """The `ladder` command."""
    sys.path.append(os.getcwd())  # for systems of the user's own
    if os.path.isdir("z3"):  # a layer's; torch's compiler would take it for a package it can use
        sys.modules.setdefault("z3", None)  # type: ignore[arg-type]
    if sys.argv[1:2] in (["train"], ["ablate"]) and not {"-h", "--help"} & {*sys.argv}:
        from ladder.train.device import flush_denormals

        flush_denormals()  # here, since it is for the whole process
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `ladder presets | head` is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The words after `ladder`; the process's own by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        return _dispatch(words)
    except SaidByTheFirst:
        return 2
    except UserError as error:
        rank = _rank()
        return _fail(f"process {rank}: {error}" if rank else error, 2)
    except WorkFailed as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        if "ladder.train.stop" in sys.modules:
            from ladder.train.stop import Stopped

            if isinstance(error, Stopped):
                return _fail(error, error.exit_code) if _rank() == 0 else error.exit_code
        raise


def _rank() -> int:
    """Number of this process among those that train together; 0 if it does not know."""
    if "ladder.train.world" not in sys.modules:
        return 0
    from ladder.train.world import found

    try:
        return found().rank
    except UserError:
        return 0


def _fail(reason: object, code: int) -> int:
    print(f"ladder: {reason}", file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("ladder-vae"))
        return 0
    verb = words[0]
    if verb not in VERBS:
        raise UserError(f"no verb '{verb}'{suggest(verb, VERBS)}")
    if verb in ALONE and "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"ladder {verb}: runs in one process; torchrun is for ladder train")
    run, describe, _ = VERBS[verb]
    parser = _Parser(prog=f"ladder {verb}", description=run.__doc__, allow_abbrev=False)
    describe(parser)
    return run(parser.parse_intermixed_args(words[1:]))


def _help() -> str:
    verbs = "\n".join(f"  {verb:<9} {line}" for verb, (_, _, line) in VERBS.items())
    return f"""usage: ladder VERB [target] [key=value ...]

Deep hierarchical VAEs, declared in YAML.

{verbs}

Try: ladder train mnist_2layer data=digits        (ladder VERB --help for more)"""


def _target(parser: _Parser, optional: bool = False) -> None:
    parser.add_argument(
        "target", nargs="?" if optional else None, help="name of a preset, or a YAML file"
    )
    _overrides(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole YAML, and end"
    )


def _overrides(parser: _Parser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.lr=1e-3 or data=digits"
    )
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _run_argument(parser: _Parser) -> None:
    parser.add_argument("run", type=Path, help="a run directory")


def _describe_train(parser: _Parser) -> None:
    _target(parser, optional=True)
    parser.add_argument("--out", type=Path, metavar="RUN", help="default: runs/<preset>-<time>")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _train(args: Arguments) -> int:
    """Train, evaluate and picture a model; the last line on stdout is the run directory."""
    from ladder.train.command import run

    return run(args)


def _describe_ablate(parser: _Parser) -> None:
    _target(parser)
    parser.add_argument(
        "--vary", nargs="+", action="extend", default=[], metavar="key=a,b", help="what is varied"
    )
    parser.add_argument("--samples", type=int, metavar="K", help="importance samples")
    parser.add_argument("--n", type=int, help="only the first N test data, for the K samples")
    jobs = "cells at once, a thread each; or together: alike ones in one pass, as on a GPU anyway"
    parser.add_argument("--jobs", metavar="N", help=jobs)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ablate-<name>")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _ablate(args: Arguments) -> int:
    """Train every combination of some values; the last line on stdout is the table's folder."""
    from ladder.ablate.command import run

    return run(args)


def _describe_evaluate(parser: _Parser) -> None:
    _run_argument(parser)
    _overrides(parser)
    parser.add_argument("--samples", type=int, default=0, metavar="K", help="importance samples")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--n", type=int, default=None, help="only the first N data")
    parser.add_argument("--seed", type=int, default=None, help="of the evaluation's noise")


def _evaluate(args: Arguments) -> int:
    """Measure the ELBO, and with --samples K the importance-weighted bound."""
    from ladder.train.measure import measure

    record = measure(args.run, args.overrides, args.split, args.samples, args.n, args.seed)
    texts = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in record.items()}
    lines = [f"{name:<10} {value}" for name, value in texts.items()]
    print(json.dumps(record) if args.json else "\n".join(lines))
    return 0


def _describe_ood(parser: _Parser) -> None:
    _describe_evaluate(parser)
    sets = "a data set or a change; default: digits, mirrored and all other changes that fit"
    parser.add_argument("--against", nargs="+", action="extend", metavar="NAME", help=sets)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: ood in the run")
    parser.set_defaults(n=1000)


def _ood(args: Arguments) -> int:
    """Tell unfamiliar data from the run's own (the first 1000 of each) by every level's bound."""
    from ladder.detect.command import run

    return run(args)


def _describe_sample(parser: _Parser) -> None:
    _run_argument(parser)
    parser.add_argument("--n", type=int, default=64, help="number of samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", default="1", help="of every prior, or z1=0.5,z2=0.8")
    parser.add_argument(
        "--recalibrate", type=int, metavar="STEPS", help="give batch norm the samples' statistics"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.png|.npy", help="default: in the run")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _sample(args: Arguments) -> int:
    """Draw from the prior into a PNG (a grid) or a .npy file (an array)."""
    from ladder.report.samples import read_temperature, write_samples

    temperature = read_temperature(args.temperature)
    path = write_samples(args.run, args.n, temperature, args.seed, args.out, args.recalibrate)
    print(json.dumps({"file": str(path), "n": args.n}) if args.json else path)
    return 0


def _describe_report(parser: _Parser) -> None:
    _run_argument(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _report(args: Arguments) -> int:
    """Draw the pictures of a run and its page."""
    from ladder.report import write_report

    paths = [str(p) for p in write_report(args.run, args.seed)]
    print(json.dumps({"files": paths}) if args.json else "\n".join(paths))
    return 0


def _bench(args: Arguments) -> int:
    """Measure training steps, sampling, encoding and bounds of some presets, on random data."""
    from ladder.bench.command import run

    return run(args)


def _describe_presets(parser: _Parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="such as '*mnist*'")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")


def _presets(args: Arguments) -> int:
    """List the presets."""
    from ladder.presets import headline, list_presets

    lines = {name: headline(name) for name in list_presets(args.pattern)}
    if args.json:
        print(json.dumps(lines))
        return 0
    for name, line in lines.items():
        print(f"{name:<{max(map(len, lines))}} {line}")
    return 0 if lines else _fail(f"no preset matches '{args.pattern}'", 2)


def _describe_import(parser: _Parser) -> None:
    parser.add_argument("system", help="such as vdvae")
    parser.add_argument("file", type=Path, help="the released weights")
    parser.add_argument("--preset", help="name of a preset, or a YAML file; some files say it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--optimizer", type=Path, metavar="FILE", help="to go on with training")
    parser.add_argument("--ema", type=Path, metavar="FILE", help="average, with --optimizer")
    _overrides(parser)


def _import(args: Arguments) -> int:
    """Turn a released checkpoint into a folder for from_pretrained, or a run to resume."""
    from ladder.train.importing import Files, import_released

    files = Files(args.file, args.ema, args.optimizer)
    out = import_released(args.system, files, args.preset, args.out, args.overrides)
    if args.optimizer is not None and args.ema is None:
        _tell("ladder: without --ema the average of the weights begins as these weights")
    print(json.dumps({"folder": str(out)}) if args.json else out)
    return 0


def _plan(args: Arguments) -> int:
    """Say what would run: parameters, latents, memory, steps. Nothing is trained."""
    from ladder.build import resolve

    config = resolve(args.target, args.overrides)
    if args.print_config:
        from ladder.train.command import print_config

        return print_config(config)
    from ladder.train.plan import plan, plan_text

    result = plan(config)
    print(json.dumps(result) if args.json else plan_text(result))
    return 0 if isinstance(result["data"], dict) else _fail(result["data"], 2)


def _describe_schema(parser: _Parser) -> None:
    parser.add_argument("--out", type=Path, help="a file instead of stdout")


def _schema(args: Arguments) -> int:
    """Print the JSON Schema of a configuration file, for YAML editors."""
    from ladder.build import json_schema
    from ladder.files import write_atomic

    text = json.dumps(json_schema(), indent=2)
    if args.out is None:
        print(text)
    else:
        write_atomic(args.out, text + "\n")
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


VERBS: dict[str, tuple[Callable[[Arguments], int], Callable[[_Parser], None], str]] = {
    "train": (_train, _describe_train, "train a preset or a YAML file"),
    "ablate": (_ablate, _describe_ablate, "train a grid of variants, and compare them"),
    "evaluate": (_evaluate, _describe_evaluate, "measure the bound of a run"),
    "ood": (_ood, _describe_ood, "tell unfamiliar data from a run's own"),
    "sample": (_sample, _describe_sample, "draw from a trained model"),
    "report": (_report, _describe_report, "pictures and page of a run"),
    "plan": (_plan, _target, "what would run, without running it"),
    "bench": (_bench, bench.describe, "measure speed, graphs and memory"),
    "import": (_import, _describe_import, "take over a released checkpoint"),
    "presets": (_presets, _describe_presets, "list the published models"),
    "schema": (_schema, _describe_schema, "JSON Schema of configuration files"),
}


if __name__ == "__main__":
    entry()
