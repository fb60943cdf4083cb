"""Bits per dimension against wall clock: the same training in float32 and in bfloat16.

    python benchmarks/precisions.py --device cuda --minutes 4.5
    python benchmarks/precisions.py tiny_vdvae data=digits --minutes 0.2     # a rehearsal

Both begin with the same seed, so with the same weights, batches and noise, and are stopped by
`train.time_limit`. Seconds are those of steps, without evaluations. The data are, unless the words
say otherwise, `cifar10_subset.npz` in $LADDER_DATA: the first 10,000 training images of CIFAR-10.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from conftest import write_result

from ladder.build import resolve
from ladder.report.canvas import new_figure, plain, png
from ladder.train import fit
from ladder.train.run import read_metrics
from ladder.train.stop import Stopped


def curve(run: Path) -> list[dict[str, float]]:
    """Seconds of steps and bits/dim of every line of a run's metrics that has them."""
    points, seconds = [], 0.0
    for record in read_metrics(run):
        if "train/bpd" in record:
            seconds += record["data"] / record["train/images_per_s"]
            point = {"step": record["step"], "seconds": seconds, "bpd": record["train/bpd"]}
            points.append({**point, "images_per_s": record["train/images_per_s"]})
        elif "val/bpd" in record:
            points.append({"step": record["step"], "seconds": seconds, "test": record["val/bpd"]})
    return points


def measure(precision: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, and keep the curve."""
    root = Path(os.environ.get("LADDER_DATA", "~/.cache/ladder")).expanduser()
    own = [] if any(w.startswith("data") for w in arguments.overrides) else ["data.flip=false"]
    data = [f"data.name={root / 'cifar10_subset.npz'}"] if own else []
    train = {
        "device": arguments.device,
        "precision": precision,
        "time_limit": f"{arguments.minutes:g}",
        "steps": "1000000",
        "log_every": str(arguments.log_every),
        "seed": "0",
    }
    words = [*data, *arguments.overrides, *(f"train.{k}={v}" for k, v in train.items())]
    config, run = resolve(arguments.preset, words), folder / precision
    try:
        fit(config, run, quiet=True)
    except Stopped as stopped:
        print(f"{precision}: {stopped}")
    points = curve(run)
    trained = [point for point in points if "bpd" in point]
    return {
        "preset": arguments.preset,
        "overrides": arguments.overrides,
        "precision": precision,
        "minutes": arguments.minutes,
        "batch": config.train.batch_size,
        "steps": points[-1]["step"] if points else 0,
        "images_per_s": trained[-1]["images_per_s"] if trained else None,
        "first_bpd": trained[0]["bpd"] if trained else None,
        "bpd": trained[-1]["bpd"] if trained else None,
        "curve": points,
    }


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Both curves, on a logarithmic axis of bits."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for row in rows:
        points = [(p["seconds"], p["bpd"]) for p in row["curve"] if "bpd" in p]
        axes.plot(*zip(*points, strict=True), label=row["precision"])
    plain(axes, f"{rows[0]['preset']}: the same seed", "seconds of steps", "bits/dim, training")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default="vdvae_cifar10")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=4.5, help="of each")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(name, arguments, Path(folder)) for name in arguments.precision]
    path = write_result("precisions", {"rows": rows}, arguments.device)
    if all(row["bpd"] is not None for row in rows):
        path.with_suffix(".png").write_bytes(picture(rows))
    print(path)


if __name__ == "__main__":
    main()
