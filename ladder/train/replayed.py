"""A training step as one graph of a GPU's work, the gathering of its batch included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ladder.capture import WARM_UPS, Replay
from ladder.data import take
from ladder.errors import UserError, WorkFailed
from ladder.train.feed import Setup, indices
from ladder.train.memory import out_of_memory
from ladder.train.state import State, is_small
from ladder.train.step import begin, end, gradients, train_step, update


def wants_graph(setup: Setup, state: State) -> bool:
    """Whether steps are captured as a graph.

    Args:
        setup: What stays the same.
        state: The run.

    Returns:
        What `train.cuda_graph` says; where it says nothing, whether the model is small and a graph
        is possible.

    Raises:
        UserError: If one is asked for where none is possible.
    """
    wish, reason = setup.config.train.cuda_graph, _obstacle(setup)
    if wish and reason is not None:
        raise UserError(f"train.cuda_graph: {reason}; leave it out, or give false")
    return reason is None and (is_small(state.model) if wish is None else wish)


def _obstacle(setup: Setup) -> str | None:
    """Why a step cannot be a graph here."""
    train = setup.config.train
    if setup.device.type != "cuda":
        return f"needs a GPU, and the device is {setup.device.type}"
    if setup.world.size > 1:
        return "is for a single process"
    if train.accumulate > 1:
        return "takes a batch as a whole, without train.accumulate"
    if train.recompute:
        return "keeps what the backward pass needs, without train.recompute"
    if not setup.on_device:
        return "needs the training data on the GPU, where they have no room"
    return None


class Replayed:
    """Does one step after another; batches of the usual size as a graph, while memory lasts.

    The first steps are taken as they are: what they make is there when the next one is captured.
    The last batch of an epoch, which may be smaller, is no graph either.

    Args:
        setup: What stays the same; its data lie on the device.
        state: The run.
        tell: Called with a sentence if steps go on without a graph.

    Attributes:
        replay: The captured step; `None` where there is no memory for it, or it cannot be.
    """

    def __init__(self, setup: Setup, state: State, tell: Callable[[str], None] = print) -> None:
        self.setup, self.state, self.tell = setup, state, tell
        self.rows = indices(setup, state.step)
        size = min(setup.config.train.batch_size, len(setup.images))
        self.index = torch.zeros(size, dtype=torch.int64, device=setup.device)
        self.replay: Replay[None] | None = Replay(self._work, setup.device, warm_ups=0)
        self.warm_ups = WARM_UPS if setup.device.type == "cuda" else 0

    def __call__(self) -> None:
        """Do the next step.

        Raises:
            WorkFailed: If the model does what no graph can, and a graph was asked for.
        """
        index = next(self.rows)
        if self.state.accumulate > 1:
            self.replay = None  # and with it the memory that the graph holds
        if self.replay is None or len(index) != len(self.index):
            self._plainly(index)
            return
        if self.warm_ups > 0:
            self.warm_ups -= 1
            self.replay.beside(lambda: self._plainly(index))
            return
        begin(self.state, self.setup.config)
        self.index.copy_(index)
        try:
            self.replay()
        except RuntimeError as error:
            if self.replay.graph is not None:
                raise
            if not out_of_memory(error) and self.setup.config.train.cuda_graph:
                raise WorkFailed(_not_captured(error)) from error
            self.tell(_not_captured(error))
            self.replay = None  # a capture computes nothing, so the step is still to be done
            self._plainly(index)
            return
        end(self.state, len(index))

    def _plainly(self, index: Tensor) -> None:
        train_step(
            self.state, take(self.setup.images, index, self.setup.device), self.setup.config
        )

    def _work(self) -> None:
        setup, state, n = self.setup, self.state, len(self.index)
        x = take(setup.images, self.index, setup.device)
        update(state, gradients(state, x, setup.config, n), setup.config, n, n)


def _not_captured(error: RuntimeError) -> str:
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"train.cuda_graph: a step of this model could not be captured ({reason}); give false"
