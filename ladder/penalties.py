"""Penalties of weights: the spectral norms of convolutions, the scales of batch norms.

Both keep a network's output from changing faster than its input: the KL of deep hierarchies is
unbounded, and large weights let it run away.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020),
    https://arxiv.org/abs/2007.03898; Spectral Norm Regularization for Improving the
    Generalizability of Deep Learning (Yoshida & Miyato, 2017), https://arxiv.org/abs/1705.10941
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ladder.errors import UserError
from ladder.weightnorm import FLOOR, WeightNormConv2d

FIRST, EACH = 40, 4  # power iterations, when there are none yet and from then on
LEAST = 1e-3  # length below which a vector is not brought to 1
TINY = 1e-30  # keeps 0 / 0 away

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class SpectralNorms:
    """Sum of the largest singular values of convolutions, by power iterations that go on.

    The matrix of a convolution is its weight, normalised and masked as it convolves, of shape
    `[out, rest]`. Matrices of one shape are iterated together; from step to step u and v stay, so
    that a few iterations are enough to follow the weights. Transposed convolutions are left out.

    Args:
        model: A model; it stays as it is.

    Attributes:
        u: Left vectors of n matrices of one shape, `[n, out]`, by shape.
        v: Right vectors, `[n, rest]`, by shape.

    Raises:
        UserError: If the model has no convolution; those of BIVA are not read.
    """

    def __init__(self, model: nn.Module) -> None:
        self.groups: dict[str, list[Convolution]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, Convolution):
                rows, columns = module.weight.flatten(1).shape
                self.groups[f"{rows}x{columns}"].append(module)
        if not self.groups:
            raise UserError(
                "objective.penalties.spectral: the model has no convolution that it reads; give 0"
            )
        self.u, self.v, self.normed = {}, {}, {}
        for shape, members in self.groups.items():
            rows, columns = map(int, shape.split("x"))
            new = members[0].weight.new_empty
            self.u[shape] = _unit(torch.randn_like(new(len(members), rows)))
            self.v[shape] = _unit(torch.randn_like(new(len(members), columns)))
            has_norm = [[isinstance(m, WeightNormConv2d)] for m in members]
            self.normed[shape] = torch.tensor(has_norm, device=self.u[shape].device)
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
        matrices, logs, normed = self._stacked(shape)
        u, v = self.u[shape], self.v[shape]
        with torch.no_grad():
            lengths = _lengths(torch.linalg.vector_norm(matrices, dim=2), normed)
            gains = logs.exp() / lengths  # of rows, so that no normalised weight is ever written
            for _ in range(times):
                v = _unit(_times(gains * u, matrices.mT))
                u = _unit(gains * _times(v, matrices))
        # In place: graphs of a GPU's work know tensors by where they lie.
        self.u[shape].copy_(u)
        self.v[shape].copy_(v)
        total: Tensor = (logs.exp() * u * _Along.apply(matrices, v, normed)).sum()
        return total

    def _stacked(self, shape: str) -> tuple[Tensor, Tensor, Tensor]:
        """Matrices `[n, out, rest]`, log-norms of their rows `[n, out]`, who has some `[n, 1]`."""
        members = self.groups[shape]
        directions, logs, zeros = [], [], torch.zeros_like(self.u[shape][0])
        for member in members:
            if isinstance(member, WeightNormConv2d):
                directions.append(member.direction())
                logs.append(member.log_norm.flatten())
            else:
                directions.append(member.weight)
                logs.append(zeros)
        matrices = torch.stack([w.flatten(1) for w in directions])
        return matrices, torch.stack(logs), self.normed[shape]

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


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Each of n matrices `[n, r, c]` times its vector, `[n, c]` to `[n, r]`."""
    # With the vector on the left: on CPUs seven times as fast as on the right.
    return torch.bmm(vectors.unsqueeze(1), matrices.mT).squeeze(1)


class _Along(torch.autograd.Function):
    """d_o . v / (||d_o|| + 1e-5) of every row d_o, or d_o . v where there is no weight norm.

    By itself autograd writes half a dozen tensors as large as the matrices; this writes one.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, v: Tensor, normed: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(matrices, dim=2)
        along = _times(v, matrices)
        ctx.save_for_backward(matrices, v, normed, norms, along)
        return along / _lengths(norms, normed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        matrices, v, normed, norms, along = ctx.saved_tensors
        lengths = _lengths(norms, normed)
        of_v = gradients[0] / lengths
        of_row = -of_v * along / (lengths * norms.clamp(min=TINY))
        change = matrices * torch.where(normed, of_row, 0.0).unsqueeze(2)
        return change.baddbmm_(of_v.unsqueeze(2), v.unsqueeze(1)), None, None


def _lengths(norms: Tensor, normed: Tensor) -> Tensor:
    """What rows are divided by, `[n, out]`."""
    return torch.where(normed, norms + FLOOR, 1.0)


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
            raise UserError("objective.penalties.batch_norm: the model has no batch norm; give 0")

    def __call__(self) -> Tensor:
        """The sum, 0-dim."""
        sums = [torch.stack(scales).abs().amax(1).sum() for scales in self.groups.values()]
        return torch.stack(sums).sum()
