"""Training on 8 to 1024 GPUs, on paper: what exchanging gradients adds to a step.

    python benchmarks/cost_model.py              # the tables of README.md, in a minute or two

Nothing here is measured. A step computes for

    t = images * FLOP per image / (SHARE * PEAK)

of which the backward pass is two thirds. n GPUs are n / 8 = m machines. An all-reduce of G bytes
goes through its machine, then between machines, where each GPU has an eighth of the bytes:

    T(G) = 2 (7/8) G / NVLINK + 2 (m-1)/m (G/8) / NET + buckets(G) * L
    L = 2 log2(8) HOP + 2 log2(m) FAR_HOP

Buckets of 25 MiB, which is what DDP sends, go out while the backward pass goes on, but the last
one not before its end; so a step waits for max(T(G) - 2 t / 3, T(last bucket)). Batch norm over
all processes waits for L four times for each norm, in the middle of the passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ladder.bench.case import Case
from ladder.bench.measure import flops_per_datum
from ladder.build import build_model, resolve

PEAK = 989e12  # FLOP/s of an H100 SXM, bfloat16, dense
SHARE = 0.30  # of it, that a step reaches
NVLINK = 0.8 * 450e9  # bytes/s out of a GPU, and as many into it
HOP, FAR_HOP = 2e-6, 5e-6  # seconds from a GPU to another, in its machine and beyond
NETWORKS = {"8 x 400 Gb/s": 0.8 * 400e9 / 8, "100 Gb/s": 0.8 * 100e9 / 8 / 8}  # bytes/s for a GPU
BUCKET = 25 * 2**20
MACHINE = 8  # GPUs
GPUS = (8, 64, 256, 1024)
EXCHANGES = 4  # of a batch norm over all processes: two forward, two backward
GOAL = 0.9
BATCH = {"vdvae_cifar10": 16, "vdvae_ffhq256": 1, "nvae_cifar10": 32, "biva_cifar10": 48}


class Work(NamedTuple):
    """What a GPU does in a step."""

    preset: str
    batch: int
    gradients: int  # bytes, float32
    flops: int  # of an image
    norms: int

    @property
    def seconds(self) -> float:
        return self.batch * self.flops / (SHARE * PEAK)


def counted(preset: str, batch: int) -> Work:
    """What the library counts, on the meta device."""
    with torch.device("meta"):
        model = build_model(config=resolve(preset))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    return Work(preset, batch, 4 * parameters, flops_per_datum(Case(preset, [], 1)), norms)


def latency(n: int) -> float:
    """Seconds of an all-reduce of hardly any bytes, up and down a tree."""
    return 2 * (math.log2(MACHINE) * HOP + math.log2(n / MACHINE) * FAR_HOP)


def exchange(size: float, n: int, net: float) -> float:
    """Seconds of an all-reduce of `size` bytes in buckets."""
    machines = n / MACHINE
    within = 2 * (MACHINE - 1) / MACHINE * size / NVLINK
    between = 2 * (machines - 1) / machines * size / MACHINE / net
    return within + between + math.ceil(size / BUCKET) * latency(n)


def waits(work: Work, n: int, net: float) -> float:
    """Seconds that a step waits for gradients."""
    last = min(BUCKET, work.gradients)
    hidden = 2 / 3 * work.seconds
    return max(exchange(work.gradients, n, net) - hidden, exchange(last, n, net))


def efficiency(work: Work, n: int, net: float, accumulate: int = 1) -> float:
    """Time of computing over time of a step; of several shards, only the last one sends."""
    computing = accumulate * work.seconds
    norms = accumulate * work.norms * EXCHANGES * latency(n)
    return computing / (computing + norms + waits(work, n, net))


def enough(work: Work, n: int, net: float) -> str:
    """The least `train.accumulate` with which efficiency is `GOAL`."""
    left = work.seconds / GOAL - work.seconds - work.norms * EXCHANGES * latency(n)
    return "none" if left <= 0 else str(max(1, math.ceil(waits(work, n, net) / left)))


def sizes(works: list[Work]) -> Iterator[str]:
    yield "| preset | images/GPU | GFLOP/image | computing, ms | gradients, MB | batch norms |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for work in works:
        yield (
            f"| {work.preset} | {work.batch} | {work.flops / 1e9:,.0f} | "
            f"{1e3 * work.seconds:.1f} | {work.gradients / 1e6:.0f} | {work.norms} |"
        )


def predictions(works: list[Work]) -> Iterator[str]:
    most = GPUS[-1]
    heads = ["preset", "between machines", *(f"{n} GPUs" for n in GPUS)]
    heads += [f"`accumulate` for {GOAL}", "exchange, ms", "norms, ms"]
    yield f"| {' | '.join(heads)} |"
    yield "| " + " | ".join(["---"] * len(heads)) + " |"
    for work, (name, net) in product(works, NETWORKS.items()):
        cells = [work.preset, name, *(f"{efficiency(work, n, net):.2f}" for n in GPUS)]
        cells += [enough(work, most, net), f"{1e3 * exchange(work.gradients, most, net):.1f}"]
        cells += [f"{1e3 * work.norms * EXCHANGES * latency(most):.0f}" if work.norms else ""]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables; the last three columns of the second are for the most GPUs."""
    works = [counted(preset, batch) for preset, batch in BATCH.items()]
    apart = [w._replace(preset=f"{w.preset}, norms apart", norms=0) for w in works if w.norms]
    print("\n".join([*sizes(works), "", *predictions(works + apart)]))


if __name__ == "__main__":
    main()
