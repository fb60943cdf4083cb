"""Penalties of weights: the spectral norms of convolutions, the scales of batch norms.

Both keep a network's output from changing faster than its input: the KL of deep hierarchies is
unbounded, and large weights let it run away.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020), sections 3.2 and
    3.3, https://arxiv.org/abs/2007.03898; Spectral Norm Regularization for Improving the
    Generalizability of Deep Learning (Yoshida & Miyato, 2017), https://arxiv.org/abs/1705.10941
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ladder.errors import UserError
from ladder.weightnorm import FLOOR, WeightNormConv2d

FIRST, EACH = 40, 4  # power iterations, when there are none yet and from then on
LEAST = 1e-3  # length below which a vector is not brought to 1

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class SpectralNorms:
    """Sum of the largest singular values of all convolutions, by power iterations that go on.

    The matrix of a convolution is its weight, normalised and masked as it convolves, of shape
    `[out, rest]`. Matrices of one shape are iterated together; from step to step u and v stay, so
    that a few iterations are enough to follow the weights.

    Args:
        model: A model; it stays as it is.

    Attributes:
        u: Left vectors of n matrices of one shape, `[n, out]`, by shape.
        v: Right vectors, `[n, rest]`, by shape.

    Raises:
        UserError: If the model has no convolution.
    """

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[str, list[Convolution]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, Convolution):
                rows, columns = module.weight.flatten(1).shape
                self.groups[f"{rows}x{columns}"].append(module)
        if not self.groups:
            raise UserError("objective.penalties.spectral: the model has no convolution")
        self.u, self.v = {}, {}
        for shape, members in self.groups.items():
            rows, columns = map(int, shape.split("x"))
            new = members[0].weight.new_empty
            self.u[shape] = _unit(torch.randn_like(new(len(members), rows)))
            self.v[shape] = _unit(torch.randn_like(new(len(members), columns)))
        self.begun = False

    def __call__(self, iterations: int | None = None) -> Tensor:
        """Iterate, then add up u^T W v of all matrices, whose gradient goes through W alone.

        Args:
            iterations: How many; by default 40 the first time and 4 from then on, as published.

        Returns:
            The sum, 0-dim.
        """
        times = iterations or (EACH if self.begun else FIRST)
        self.begun = True
        sums = [self._follow(shape, times) for shape in self.groups]
        return torch.stack(sums).sum()

    def _follow(self, shape: str, times: int) -> Tensor:
        matrices, gains = _stacked(self.groups[shape])
        u, v = self.u[shape], self.v[shape]
        with torch.no_grad():
            for _ in range(times):
                v = _unit(_times(gains * u, matrices.mT))
                u = _unit(gains * _times(v, matrices))
        self.u[shape], self.v[shape] = u, v
        return (gains * u * _times(v, matrices)).sum()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        vectors = {name: {k: t.cpu() for k, t in getattr(self, name).items()} for name in "uv"}
        return {"begun": self.begun, **vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        for name in "uv":
            own, given = getattr(self, name), state[name]
            if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in given.items()}:
                raise ValueError("its power iterations are of other convolutions")
            setattr(self, name, {k: given[k].to(t) for k, t in own.items()})
        self.begun = bool(state["begun"])


def _stacked(members: list[Convolution]) -> tuple[Tensor, Tensor]:
    """Matrices `[n, out, rest]`, and what multiplies their rows, `[n, out]`."""
    normed = [m for m in members if isinstance(m, WeightNormConv2d)]
    directions = [m.direction() if isinstance(m, WeightNormConv2d) else m.weight for m in members]
    matrices = torch.stack([w.flatten(1) for w in directions])
    if not normed:
        return matrices, matrices.new_ones(())
    # So the normalised weights are never written to memory.
    logs = torch.stack([m.log_norm.flatten() for m in normed])
    norms = torch.linalg.vector_norm(matrices, dim=2)
    if len(normed) == len(members):
        return matrices, logs.exp() / (norms + FLOOR)
    gains = iter(logs.exp().unbind())
    rows = [
        next(gains) / (norm + FLOOR) if isinstance(m, WeightNormConv2d) else torch.ones_like(norm)
        for m, norm in zip(members, norms.unbind(), strict=True)
    ]
    return matrices, torch.stack(rows)


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Each of n matrices `[n, r, c]` times its vector, `[n, c]` to `[n, r]`."""
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=1, eps=LEAST)


class BatchNormScales:
    """Sum over all batch norms of their largest |gamma|.

    Args:
        model: A model; it stays as it is.

    Raises:
        UserError: If the model has no batch norm.
    """

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[int, list[Tensor]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                self.groups[module.num_features].append(module.weight)
        if not self.groups:
            raise UserError("objective.penalties.batch_norm: the model has no batch norm")

    def __call__(self) -> Tensor:
        """The sum, 0-dim."""
        sums = [torch.stack(scales).abs().amax(1).sum() for scales in self.groups.values()]
        return torch.stack(sums).sum()
