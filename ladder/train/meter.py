"""Metrics summed on the device and brought back once in a while."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ladder.train.world import World, summed


class Meter:
    """Sums of metrics, weighted by the number of data they are means of.

    Args:
        device: Where the metrics are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.data = 0
        self.counted = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, values: dict[str, Tensor], data: int, counted: Tensor | None = None) -> None:
        """Add one step's metrics, unless `counted` is false; nothing is read back.

        The sums stay where they are in memory, for graphs of a GPU's work; `data`, which is the
        host's, is the caller's to raise.

        Args:
            values: Means over the data of the step, 0-dim.
            data: Number of those data.
            counted: Whether the values enter the means, 0-dim; `None` if they do.
        """
        stacked = torch.stack([v.detach() for v in values.values()]).double() * data
        if self.sums is None:
            self.names, self.sums = list(values), torch.zeros_like(stacked)
        if counted is None:
            self.sums += stacked
            self.counted += data
        else:
            self.sums += torch.where(counted, stacked, 0.0)
            self.counted += counted * data

    def read(self) -> dict[str, float]:
        """Means over all data since `clear`; this is where the host waits for the device.

        Returns:
            The means by name; nothing if no data were counted.
        """
        if self.sums is None or self.counted.item() == 0:
            return {}
        return dict(zip(self.names, (self.sums / self.counted).tolist(), strict=True))

    def collect(self, world: World) -> None:
        """Give the first process what all of them have added; the others begin again."""
        if world.size == 1 or self.sums is None:
            return
        every = summed(torch.cat([self.sums, self.counted[None]]), world) * world.leads
        self.sums.copy_(every[:-1])
        self.counted.copy_(every[-1])

    def clear(self) -> None:
        """Begin again."""
        self.data = 0
        self.counted.zero_()
        if self.sums is not None:
            self.sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        sums = None if self.sums is None else self.sums.cpu()
        counted = self.counted.cpu()
        return {"names": self.names, "sums": sums, "data": self.data, "counted": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.names, self.data = list(state["names"]), state["data"]
        sums = state["sums"]
        self.sums = None if sums is None else sums.to(self.device)
        # Checkpoints from before steps could be left out counted all data.
        counted = state.get("counted", torch.tensor(float(self.data)))
        self.counted.copy_(counted)
