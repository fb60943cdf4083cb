"""One measurement in a process of its own: JSON in, JSON out as the last line.

    python -m ladder.bench.child TASK CASE HOW

and `in_a_process`, which starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from ladder.bench.case import Case
from ladder.bench.largest import largest
from ladder.bench.machine import machine
from ladder.bench.measure import How, Make, measure
from ladder.bench.memory import NO_MEMORY
from ladder.bench.trainee import trainee
from ladder.errors import UserError, WorkFailed
from ladder.train.memory import out_of_memory

TASKS = {"step": measure, "largest": largest}
OURS = (sys.executable, "-m", "ladder.bench.child")


def in_a_process(
    task: str,
    case: Case,
    how: How,
    timeout: float | None = None,
    command: Sequence[str] = OURS,
) -> dict[str, Any]:
    """Measure a case in a new process, in which nothing was compiled before.

    Args:
        task: `step` or `largest`.
        case: What to measure.
        how: How.
        timeout: Seconds that it may take.
        command: What runs `main`, with whatever makes its model.

    Returns:
        The case and what was found, by name; `failed` says why nothing was.
    """
    words = [json.dumps(word) for word in (task, case._asdict(), how._asdict())]
    with tempfile.TemporaryDirectory() as cache:  # what was compiled before must not help
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            done = subprocess.run(
                [*command, *words], stdout=subprocess.PIPE, text=True, env=env, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {**case._asdict(), "failed": f"not done after {timeout:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode == NO_MEMORY:
        found = {"failed": "over the limit of memory"}
    elif done.returncode < 0:
        found = {"failed": f"killed by signal {-done.returncode}; out of memory?"}
    elif done.returncode or not lines:
        found = {"failed": f"exit code {done.returncode}"}
    else:
        found = dict(json.loads(lines[-1]))
    return {**case._asdict(), **found}


def main(make: Make = trainee, words: Sequence[str] | None = None) -> None:
    """Do what the words of this process say, and print what was found.

    Args:
        make: Makes the model that the case names.
        words: Task, case and how, each as JSON; the process's own by default.
    """
    task, case, how = (json.loads(word) for word in words or sys.argv[1:])
    case, how = Case(**case), How(**how)
    try:
        result = TASKS[task](case, how, make)
    except (UserError, WorkFailed) as error:
        result = {"failed": str(error)}
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        result = {"failed": "out of memory"}
    print(json.dumps({"machine": machine(case.device), **result}))


if __name__ == "__main__":
    main()
