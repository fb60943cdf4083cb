"""`ladder ablate`: from what is declared to the table, going on with what is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ladder.ablate.alike import alike_together, on_gpu
from ladder.ablate.cell import Result, Task, result, trained
from ladder.ablate.declare import Ablation, AblationFile, declare
from ladder.ablate.grid import Cell, grid
from ladder.ablate.jobs import at_once, one_by_one
from ladder.ablate.lock import locked
from ladder.ablate.prepare import check_same, prepare
from ladder.ablate.table import Table, tabulate
from ladder.ablate.write import write_table
from ladder.build import resolve
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.parse import to_yaml
from ladder.train.run import RESOLVED, check_free
from ladder.train.stop import Stopped

DECLARED = "ablation.yaml"


def ablate(
    source: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    vary: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    samples: int | None = None,
    n: int | None = None,
    jobs: int | Literal["together"] | None = None,
    quiet: bool = False,
) -> Table:
    """Train every combination of some values with the same budget, and compare them.

    Called again with the same folder it does only what is still to be done: a finished cell is
    read, one that was stopped goes on from its checkpoint bit for bit, one that failed is tried
    again.

    Args:
        source: An ablation file or a mapping like its content (`base`, `vary`, `samples`, `n`);
            or the base itself: a preset, a configuration file or a mapping like its content.
        out: Folder of the cells and the table; `runs/ablate-<name>` by default.
        vary: Values by dotted key, such as `{"train.seed": [0, 1, 2]}`.
        overrides: Words `key=value` for every cell.
        samples: Importance samples K of the bound; 0 measures only the ELBO.
        n: Test data for the importance-weighted bound; all by default.
        jobs: Cells at once, each in a process of its own with one thread; or `together`, which
            trains small dense models that are alike in one pass; `None` does so on a GPU, and
            takes one after another on the CPU.
        quiet: Say nothing on stderr.

    Returns:
        The table, which is written as table.md, table.csv, table.json and figure.png.

    Raises:
        UserError: If a key or a value is wrong, or the folder holds something else; nothing is
            trained then.
        Stopped: After a signal or at the time limit (`train.time_limit`, of the whole call), with
            checkpoints and a table of what is done.
    """
    if isinstance(jobs, int) and jobs < 1:
        raise UserError("ablate: --jobs must be at least 1, or together")
    ablation = declare(source, vary or {}, overrides, samples, n)
    cells = prepare(grid(ablation))
    folder = Path("runs") / f"ablate-{ablation.title}" if out is None else Path(out)
    _check_folder(folder, cells)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock:
        write_atomic(folder / DECLARED, to_yaml(_file(ablation, cells)))
        work = _Work(folder, ablation, cells, quiet)
        work.tell_plan()
        try:
            work.do(jobs, lock)
        except Stopped as stop:
            write_table(work.table())
            raise Stopped(
                stop.exit_code,
                f"stopped; {work.finished} of {len(cells)} cells are done; "
                "the same command goes on",
            ) from None
        table = work.table()
        write_table(table)
    return table


def declared(
    source: str | Path | Mapping[str, Any],
    vary: Mapping[str, Any],
    overrides: Sequence[str] = (),
    samples: int | None = None,
    n: int | None = None,
) -> AblationFile:
    """The ablation as one file that says everything; arguments as of `ablate`."""
    ablation = declare(source, vary, overrides, samples, n)
    return _file(ablation, grid(ablation))


class _Work:
    """The cells while they are being done."""

    def __init__(self, out: Path, ablation: Ablation, cells: list[Cell], quiet: bool) -> None:
        self.out, self.ablation, self.cells, self.quiet = out, ablation, cells, quiet
        self.failures = {cell.name: cell.error for cell in cells if cell.error is not None}
        tasks = [
            Task(cell, out, ablation.samples, ablation.n)
            for cell in cells
            if cell.name not in self.failures
        ]
        read = {task.cell.name: result(task) for task in tasks}
        self.results: dict[str, Result] = {k: v for k, v in read.items() if v is not None}
        self.tasks = [task for task in tasks if task.cell.name not in self.results]

    def do(self, jobs: int | Literal["together"] | None, lock: int) -> None:
        """Do the cells; arguments as of `ablate`, and the lock that workers hold too."""
        silent = self.quiet or not sys.stderr.isatty()
        if isinstance(jobs, int) and jobs > 1:
            at_once(self.tasks, self.done, jobs, lock)
        elif jobs == "together" or (jobs is None and on_gpu(self.tasks)):
            alike_together(self.tasks, self.done, silent, self._tell)
        else:
            one_by_one(self.tasks, self.done, silent)

    @property
    def finished(self) -> int:
        """Cells that are done."""
        return len(self.results)

    def table(self) -> Table:
        """What is there now."""
        return tabulate(self.out, self.ablation, self.cells, self.results, self.failures)

    def done(self, task: Task, error: str | None) -> None:
        """Note and tell how a cell ended."""
        found = result(task) if error is None else None
        if found is None:
            self.failures[task.cell.name] = error or "not everything was measured"
            self._tell_cell(task.cell.name, f"failed: {self.failures[task.cell.name]}")
            return
        self.results[task.cell.name] = found
        numbers = found.numbers
        bounds = [f"ELBO {numbers['elbo']:.2f}"]
        if task.samples:
            bounds.append(f"IW-{task.samples} {numbers[f'iw{task.samples}']:.2f}")
        self._tell_cell(task.cell.name, f"{', '.join(bounds)} in {numbers['seconds']:.0f} s")

    def tell_plan(self) -> None:
        """Say what is going to be done."""
        grid_text = " x ".join(f"{len(axis.values)} {axis.key}" for axis in self.ablation.axes)
        steps = _range([cell.steps for cell in self.cells if cell.error is None])
        begun = sum(task.run.is_dir() for task in self.tasks if not trained(task))
        there = f"; {self.finished} done and {begun} begun already" * bool(self.finished + begun)
        self._tell(
            f"{len(self.cells)} cells ({grid_text}), {steps} steps each, in {self.out}{there}"
        )
        for name, reason in self.failures.items():
            self._tell_cell(name, f"failed: {reason}")

    def _tell_cell(self, name: str, text: str) -> None:
        ended = self.finished + len(self.failures)
        self._tell(f"[{ended}/{len(self.cells)}] {name}: {text}")

    def _tell(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _check_folder(out: Path, cells: Sequence[Cell]) -> None:
    if (out / DECLARED).is_file():
        check_same(out, cells)
        _check_kept(out, cells)
    elif out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise UserError(f"{out}: not empty, and no ablation is there; choose another --out")
    elif not out.is_dir():
        check_free(out)


def _check_kept(out: Path, cells: Sequence[Cell]) -> None:
    """Refuse a folder where other keys were varied: its rows would vanish from the table."""
    varied = {_keys(cell.name) for cell in cells}
    there = (p.parent.name for p in out.glob(f"*/{RESOLVED}"))
    for name in sorted(name for name in there if _keys(name) not in varied):
        raise UserError(f"{out}: holds '{name}', where other keys were varied; give another --out")


def _keys(name: str) -> tuple[str, ...]:
    return tuple(part.partition("=")[0] for part in name.split(","))


def _file(ablation: Ablation, cells: Sequence[Cell]) -> AblationFile:
    """With its base whole; a cell's, where the base alone is not."""
    try:
        config = resolve(ablation.base, ablation.overrides)
    except UserError:
        config = next(cell.config for cell in cells if cell.config is not None)
    vary = {axis.key: axis.values for axis in ablation.axes}
    base = config.model_dump(mode="json")
    return AblationFile(base=base, overrides=[], vary=vary, samples=ablation.samples, n=ablation.n)


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
