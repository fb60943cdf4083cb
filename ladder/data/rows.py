"""Data too many to hold: they stay in their files until a batch of them is gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


class Rows:
    """Rows of a source in a chosen order: of a tensor [N, *shape], what a set of data needs.

    `rows[3]` reads one datum, `read` a batch. Slices, orders and `map` read nothing: they make
    other rows of the same source.

    Args:
        gather: Reads the source: from row numbers, int64 [B], to fresh uint8 [B, *datum].
        index: Which rows of the source these are, int64 [N].
        datum: Shape of one datum.
    """

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(self, gather: Gather, index: Tensor, datum: Sequence[int]) -> None:
        self._gather = gather
        self._index = index
        self._datum = torch.Size(datum)

    @property
    def shape(self) -> torch.Size:
        """[N, *datum]."""
        return torch.Size((len(self), *self._datum))

    @property
    def ndim(self) -> int:
        """Number of axes, that of the rows included."""
        return 1 + len(self._datum)

    @property
    def nbytes(self) -> int:
        """What all of them would take in memory."""
        return self.numel()

    def numel(self) -> int:
        """Numbers in all data together."""
        return self.shape.numel()

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...

    @overload
    def __getitem__(self, at: slice | Tensor) -> Rows: ...

    def __getitem__(self, at: int | slice | Tensor) -> Tensor | Rows:
        if isinstance(at, slice | Tensor):
            return Rows(self._gather, self._index[at], self._datum)
        return self._gather(self._index[at].view(1))[0]

    def read(self, index: Tensor) -> Tensor:
        """Read some of them.

        Args:
            index: Which of these rows, int64 [B], on the CPU.

        Returns:
            uint8 [B, *datum], in the order of `index`.

        Raises:
            UserError: If a file cannot be read, or does not fit the others.
        """
        return self._gather(self._index.index_select(0, index))

    def map(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """Change data after they are read.

        Args:
            change: From uint8 [B, *datum] to uint8 [B, ...], datum by datum.

        Returns:
            The same rows, changed.
        """
        gather = self._gather
        like = change(torch.zeros((1, *self._datum), dtype=self.dtype))
        return Rows(lambda index: change(gather(index)), self._index, like.shape[1:])


Data = Tensor | Rows
"""A set, or a part of one: [N, *shape]."""
