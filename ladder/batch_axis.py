"""Trees of tensors, such as p(x|z) or evidence, along their batch axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from ladder.errors import UserError

T = TypeVar("T")


def repeated(tree: T, k: int) -> T:
    """Repeat every tensor, `[B, ...] -> [k B, ...]`, in its memory format.

    Args:
        tree: The tensors; one that stands there twice is repeated once.
        k: How often.

    Returns:
        The same with the longer tensors.
    """
    if k == 1:
        return tree
    many: dict[int, Tensor] = {}

    def longer(values: Tensor) -> Tensor:
        if id(values) not in many:
            # Not `repeat`, which would forget that channels come last.
            many[id(values)] = torch.cat([values] * k)
        return many[id(values)]

    return tree_map_only(Tensor, longer, tree)  # type: ignore[no-any-return]


def joined(trees: Sequence[T]) -> T:
    """Join trees that are alike, `[B_i, ...] -> [sum B_i, ...]`.

    Args:
        trees: At least one; every tensor of theirs has the batch axis, or no axis at all.

    Returns:
        One tree of the longer tensors; what is no tensor is as in the first.

    Raises:
        UserError: If a tree is of a kind that does not show its tensors.
    """
    if len(trees) == 1:
        return trees[0]

    def longer(first: Any, *others: Any) -> Any:
        if isinstance(first, Tensor):
            return torch.cat([first, *others]) if first.ndim else first
        if all(first == other for other in others):
            return first
        raise UserError(f"a {type(first).__name__} cannot be joined; make it a NamedTuple")

    return tree_map(longer, trees[0], *trees[1:])  # type: ignore[no-any-return]
