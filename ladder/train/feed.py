"""From a configuration to batches: what stays the same while training, and what is fed to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ladder.batchnorm import alone
from ladder.build import build_model
from ladder.config import Config, ModelConfig
from ladder.data import Data, Splits, load, permutation, place, take
from ladder.errors import UserError
from ladder.train.device import choose_device
from ladder.train.world import World

FEW = 100  # steps between two evaluations, at least, unless the configuration says


class Setup(NamedTuple):
    """What stays the same while training.

    Attributes:
        config: The run's configuration.
        out: The run directory.
        images: Training data where batches are gathered, `[N, *shape]`.
        held_out: Data that evaluations use, `[M, *shape]`.
        split: Name of those, `validation` or `test`.
        device: Where to train.
        total: Steps to do.
        world: The processes that train together.
    """

    config: Config[ModelConfig]
    out: Path
    images: Data
    held_out: Data
    split: str
    device: torch.device
    total: int
    world: World = World()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, a smaller last one included."""
        return math.ceil(len(self.images) / self.config.train.batch_size)

    @property
    def default_evaluate_every(self) -> int:
        """Whole epochs that make at least `FEW` steps."""
        return math.ceil(FEW / self.steps_per_epoch) * self.steps_per_epoch

    def data_at(self, step: int) -> int:
        """Data of all processes together in the batch of a step."""
        size = self.config.train.batch_size
        return min(size, len(self.images) - step % self.steps_per_epoch * size)

    @property
    def on_device(self) -> bool:
        """Whether batches are gathered on the device itself."""
        return isinstance(self.images, Tensor) and self.images.device == self.device


def set_up(config: Config[ModelConfig], out: Path, world: World = World()) -> Setup:  # noqa: B008
    """Load the data and count the steps.

    Args:
        config: The run's configuration.
        out: The run directory; nothing is written.
        world: The processes that train together.

    Returns:
        What stays the same while training.
    """
    device = choose_device(config.train.device, world.local if world.size > 1 else None)
    data: Splits = load(config.data, config.model.shape, config.train.seed)
    split = "validation" if len(data.validation) else "test"
    held_out = data.validation if len(data.validation) else data.test
    images, held_out = place(data.train, device), place(held_out, device)
    total = config.train.total_steps(len(data.train))
    return Setup(config, out, images, held_out, split, device, total, world)


def indices(setup: Setup, step: int) -> Iterator[Tensor]:
    """Rows of every batch, int64 `[B]`, from a step on, for ever, where batches are gathered.

    A function of (seed, step) alone, and the same for all processes.
    """
    size, n = setup.config.train.batch_size, len(setup.images)
    epoch, skipped = divmod(step, setup.steps_per_epoch)
    while True:
        order = permutation(n, setup.config.train.seed, epoch).to(setup.images.device)
        yield from order.split(size)[skipped:]
        epoch, skipped = epoch + 1, 0


def batches(setup: Setup, step: int) -> Iterator[Tensor]:
    """Batches `[B, *shape]` from a step on, for ever: of several processes, this one's parts.

    Where a batch is too small for every process to have some of it, the last ones get one datum
    that does not count, so as to keep step.
    """
    source = (
        take(setup.images, own_part(index, setup.world), setup.device)
        for index in indices(setup, step)
    )
    return source if setup.on_device else ahead(source)


def own_part(index: Tensor, world: World) -> Tensor:
    """This process's part of the rows of a batch; the whole of it, if it is alone."""
    own = index.tensor_split(world.size)[world.rank]
    return own if len(own) else index[:1]


def ahead(source: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each gathered while the one before is trained on; of an endless source."""
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, source)
        while True:
            batch = waiting.result()
            waiting = reader.submit(next, source)
            yield batch


def first_data(setup: Setup) -> Tensor:
    """The first data of the training set, as many as a batch has, in their own order."""
    count = min(setup.config.train.batch_size, len(setup.images))
    index = torch.arange(count, device=setup.images.device)
    return take(setup.images, index, setup.device)


def check_last_batch(setup: Setup) -> None:
    """What batch norm cannot do with a batch, whole or the last, is said before the first step.

    Args:
        setup: What stays the same.

    Raises:
        UserError: If it would meet one number, or a process would wait for others, because it has
            data for more shards than they.
    """
    train, n, processes = setup.config.train, len(setup.images), setup.world.size
    whole = min(train.batch_size, n)
    last = n % whole or whole
    uneven = [size for size in (whole, last) if _uneven(size, processes, train.accumulate)]
    if not uneven and last > 1 and (processes > 1 or last // train.accumulate > 1):
        return
    with torch.device("meta"), alone():
        model = build_model(config=setup.config)
        if uneven and any(isinstance(module, _BatchNorm) for module in model.modules()):
            which = "a batch" if uneven[0] == whole else "the last batch"
            raise UserError(
                f"train.accumulate: {train.accumulate} parts are more than each of {processes} "
                f"processes has of {which}, of {uneven[0]} data, which batch norm waits for; "
                "choose another train.batch_size"
            )
        try:
            model(torch.zeros(1, *setup.config.model.shape))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            parts = f" in {train.accumulate} parts" if last > 1 else ""
            raise UserError(
                f"train.batch_size: {train.batch_size}{parts} leaves one of {n} data for the last "
                "batch, which batch norm cannot normalise; choose another"
            ) from None


def _uneven(size: int, processes: int, shards: int) -> bool:
    """Whether some processes have one shard more of a batch than others."""
    return 0 < size // processes < shards and size % processes > 0
