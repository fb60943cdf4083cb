"""Training throughput of `mnist_2layer`: eager, compiled, and the notebook's way, in one run.

    python benchmarks/mnist_2layer_modes.py --device cuda
    python benchmarks/mnist_2layer_modes.py --device cpu --windows 2 --images 512   # a rehearsal

Images/s are medians over windows after a warm-up, with the device synchronised around each. The
notebook's way reads every term back at every step; its images come from the same MNIST files
through DataLoader and ToTensor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import notebook
import torch
from conftest import write_result
from torch.utils.data import DataLoader, Subset

from ladder.build import resolve
from ladder.train import step as steps
from ladder.train.loop import Setup, batches, set_up
from ladder.train.state import new_state


def images_per_second(epoch: Callable[[], int], windows: int, device: torch.device) -> list[float]:
    epoch()  # warm-up: allocations, compilation
    rates = []
    for _ in range(windows):
        _wait(device)
        begun = time.perf_counter()
        images = epoch()
        _wait(device)
        rates.append(images / (time.perf_counter() - begun))
    return rates


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def our_epoch(setup: Setup) -> Callable[[], int]:
    state = new_state(setup.config, setup.device)

    def epoch() -> int:
        for x in islice(batches(setup, state.step), setup.steps_per_epoch):
            steps.train_step(state, x, setup.config)
        state.meter.read()
        return len(setup.images)

    return epoch


def notebook_epoch(batch: int, images: int, device: torch.device) -> Callable[[], int]:
    model = notebook.Documented().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    root = Path(os.environ.get("LADDER_DATA", "~/.cache/ladder")).expanduser()
    data = Subset(notebook.loader(root).dataset, range(images))
    loader = DataLoader(data, batch_size=batch, shuffle=True)

    def epoch() -> int:
        notebook.train_epoch(model, loader, optimizer, device)
        return images

    return epoch


def measure(batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    words = [f"train.device={arguments.device}", f"train.batch_size={batch}"]
    setup = set_up(resolve("mnist_2layer", words), Path("unused"))
    setup = setup._replace(images=setup.images[: arguments.images])
    rates = {"eager": images_per_second(our_epoch(setup), arguments.windows, setup.device)}
    eager = steps.forward_terms
    steps.forward_terms = torch.compile(eager)
    rates["compiled"] = images_per_second(our_epoch(setup), arguments.windows, setup.device)
    steps.forward_terms = eager
    theirs = notebook_epoch(batch, len(setup.images), setup.device)
    rates["notebook"] = images_per_second(theirs, arguments.windows, setup.device)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"batch": batch, "images_per_s": rates, "medians": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 4096])
    arguments = parser.parse_args()
    results = [measure(batch, arguments) for batch in arguments.batch]
    for result in results:
        print(result["batch"], {k: round(v) for k, v in result["medians"].items()})
    path = write_result(
        "mnist-2layer-modes", {"images": arguments.images, "runs": results}, arguments.device
    )
    print(path)


if __name__ == "__main__":
    main()
