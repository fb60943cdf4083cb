"""One measurement of released code by `steps.py --released`, in a process of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ladder.bench.case import Case
from ladder.bench.child import main
from ladder.bench.trainee import Trainee, set_products
from ladder.build import resolve

SYSTEMS = ("vdvae", "biva")


def make(case: Case) -> Trainee:
    """The released model of the case's system."""
    system = resolve(case.preset, case.overrides).model.system
    if system not in SYSTEMS:
        raise SystemExit(f"the released code of '{system}' is not timed; leave --released out")
    set_products(case)
    module = importlib.import_module(f"{system}_released")
    trainee: Trainee = module.released(case, Path(sys.argv[1]))
    return trainee


if __name__ == "__main__":
    main(make, sys.argv[2:])
