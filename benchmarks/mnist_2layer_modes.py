"""Training `mnist_2layer`: eager, compiled, one CUDA graph, and the notebook's way, in one run.

    python benchmarks/mnist_2layer_modes.py --device cuda
    python benchmarks/mnist_2layer_modes.py --epochs 2 --images 512   # a rehearsal

The ways take turns, an epoch each, so that a busy machine is busy for all. Kept are wall time and
this process's CPU time, which other work disturbs less, but which counts waiting threads too.
The first epoch of a way holds its warm-up: allocations, compiling, capturing. Images/s are the
median of the others, by wall time; `seconds` are those of all of them, and `loss` is the mean of
the last one, in nats. `share` is the rate of an epoch's matrix products over that of a product of
1024 x 1024 (on a GPU 8192 x 8192). Ours are as `ladder train` does them. The notebook's way reads
every term back at every step; its images come from the same MNIST files through DataLoader and
ToTensor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import notebook
import torch
from conftest import write_result
from torch.utils.data import DataLoader, Subset

from ladder.bench.case import Case
from ladder.bench.measure import matrix_rate
from ladder.build import resolve
from ladder.train.device import flush_denormals
from ladder.train.loop import started, stepper

MODES = {
    "eager": ["train.compile=none", "train.cuda_graph=false"],
    "compiled": ["train.compile=model", "train.cuda_graph=false"],
    "graph": ["train.compile=none", "train.cuda_graph=true"],
}
FLOP = 6 * 610_480  # of an image's matrix products, forward and backward
Epoch = Callable[[], float]  # does one, and returns its mean loss


def our_epoch(mode: str, batch: int, arguments: argparse.Namespace, folder: Path) -> Epoch:
    words = [f"train.device={arguments.device}", f"train.batch_size={batch}", *MODES[mode]]
    course = started(resolve("mnist_2layer", words), folder, quiet=True)
    course.setup = course.setup._replace(images=course.setup.images[: arguments.images])
    advance, meter = stepper(course), course.state.meter

    def epoch() -> float:
        meter.clear()
        for _ in range(course.setup.steps_per_epoch):
            advance()
        return meter.read()["train/loss"]

    return epoch


def notebook_epoch(batch: int, arguments: argparse.Namespace, folder: Path) -> Epoch:
    device = torch.device(arguments.device)
    model = notebook.Documented().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    root = Path(os.environ.get("LADDER_DATA", "~/.cache/ladder")).expanduser()
    images = notebook.images(root, folder)
    data = Subset(images, range(min(arguments.images, len(images))))
    loader = DataLoader(data, batch_size=batch, shuffle=True)
    return lambda: notebook.train_epoch(model, loader, optimizer, device)[0]


def measure(batch: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each way."""
    modes = [m for m in MODES if m != "graph" or arguments.device.startswith("cuda")]
    ways = {m: our_epoch(m, batch, arguments, folder / f"{m}-{batch}") for m in modes}
    ways["notebook"] = notebook_epoch(batch, arguments, folder)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    loss: dict[str, float] = {}
    for _ in range(arguments.epochs):
        for name, epoch in ways.items():
            begun, busy = time.perf_counter(), time.process_time()
            loss[name] = epoch()  # reading it waits for the device
            seconds[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - busy)
    medians, cpu_medians = (
        {name: statistics.median(values[1:] or values) for name, values in all_of.items()}
        for all_of in (seconds, cpu)
    )
    rate = matrix_rate(Case("mnist_2layer", [], batch, arguments.device))
    return [
        {
            "mode": name,
            "batch": batch,
            "images": arguments.images,
            "epochs": arguments.epochs,
            "images_per_s": arguments.images / medians[name],
            "of_the_notebook": medians[name] / medians["notebook"],
            "of_the_notebook_by_cpu_time": cpu_medians[name] / cpu_medians["notebook"],
            "share": FLOP * arguments.images / medians[name] / rate,
            "seconds": sum(seconds[name]),
            "loss": loss[name],
            "seconds_of_epochs": seconds[name],
            "cpu_seconds_of_epochs": cpu[name],
        }
        for name in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 4096])
    parser.add_argument("--note", help="a sentence that is kept, such as what else was running")
    arguments = parser.parse_args()
    flush_denormals()  # as `ladder train` does; the notebook's way gains by it too
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for b in arguments.batch for row in measure(b, arguments, Path(folder))]
    for row in rows:
        rate, share = row["images_per_s"], row["of_the_notebook"]
        print(f"{row['batch']:>5} {row['mode']:<9} {rate:>9.0f} images/s  {share:.3f}")
    content = {"runs": rows, "note": arguments.note}
    print(write_result("mnist-2layer-modes", content, arguments.device))


if __name__ == "__main__":
    main()
