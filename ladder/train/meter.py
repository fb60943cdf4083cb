"""Metrics summed on the device and brought back once in a while."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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

    def add(self, values: dict[str, Tensor], data: int) -> None:
        """Add one step's metrics, each a 0-dim mean over `data` data; nothing is read back."""
        stacked = torch.stack([v.detach().double() for v in values.values()]) * data
        if self.sums is None:
            self.names, self.sums = list(values), torch.zeros_like(stacked)
        self.sums += stacked
        self.data += data

    def read(self) -> dict[str, float]:
        """Means over all data since `clear`; this is where the host waits for the device."""
        if self.sums is None or self.data == 0:
            return {}
        return dict(zip(self.names, (self.sums / self.data).tolist(), strict=True))

    def clear(self) -> None:
        """Begin again."""
        self.data = 0
        if self.sums is not None:
            self.sums = torch.zeros_like(self.sums)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        sums = None if self.sums is None else self.sums.cpu()
        return {"names": self.names, "sums": sums, "data": self.data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self.names, self.data = list(state["names"]), state["data"]
        sums = state["sums"]
        self.sums = None if sums is None else sums.to(self.device)
