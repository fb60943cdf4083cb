"""A training step as one graph of a GPU's work, the gathering of its batch included."""

from __future__ import annotations

import torch

from ladder.capture import Replay
from ladder.data import take
from ladder.errors import UserError
from ladder.train.feed import Setup, indices
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
    wish, reason = setup.config.train.cuda_graph, _obstacle(setup, state)
    if wish and reason is not None:
        raise UserError(f"train.cuda_graph: {reason}; leave it out, or give false")
    return reason is None and (is_small(state.model) if wish is None else wish)


def _obstacle(setup: Setup, state: State) -> str | None:
    """Why a step cannot be a graph here."""
    if setup.device.type != "cuda":
        return f"needs a GPU, and the device is {setup.device.type}"
    if setup.world.size > 1:
        return "is for a single process"
    if state.accumulate > 1:
        return "takes a batch as a whole, without train.accumulate"
    if not setup.on_device:
        return "needs the training data on the GPU, where they have no room"
    return None


class Replayed:
    """Does one step after another; batches of the usual size as a graph.

    Args:
        setup: What stays the same; its data lie on the device.
        state: The run.
    """

    def __init__(self, setup: Setup, state: State) -> None:
        self.setup, self.state = setup, state
        self.rows = indices(setup, state.step)
        size = min(setup.config.train.batch_size, len(setup.images))
        self.index = torch.zeros(size, dtype=torch.int64, device=setup.device)
        self.replay = Replay(self._work, setup.device)

    def __call__(self) -> None:
        """Do the next step."""
        setup, state, index = self.setup, self.state, next(self.rows)
        if len(index) != len(self.index) or state.accumulate > 1:  # the last of an epoch
            train_step(state, take(setup.images, index, setup.device), setup.config)
            return
        begin(state, setup.config)
        self.index.copy_(index)
        self.replay()
        end(state, len(index))

    def _work(self) -> None:
        setup, state, n = self.setup, self.state, len(self.index)
        x = take(setup.images, self.index, setup.device)
        update(state, gradients(state, x, setup.config, n), setup.config, n, n)
