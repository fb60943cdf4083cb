"""The objective's penalties of weights, and what they weigh at a step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ladder.build import build_model
from ladder.config import Config, ModelConfig, ObjectiveConfig
from ladder.model import HierarchicalVAE
from ladder.penalties import BatchNormScales, SpectralNorms
from ladder.sampling import layer_names
from ladder.schedules import Step
from ladder.train.schemes import annealing_at, layer_schemes


class Cost(NamedTuple):
    """A penalty at a step.

    Attributes:
        value: The penalty itself, 0-dim.
        weighted: What the loss adds, 0-dim.
    """

    value: Tensor
    weighted: Tensor


def check_objective(config: Config[ModelConfig]) -> None:
    """Raise UserError if the objective does not fit the model; allocates nothing."""
    objective = config.objective
    if objective.layers or objective.kl_target is not None or objective.penalties is not None:
        with torch.device("meta"):
            check_fits(objective, build_model(config=config))


def check_fits(objective: ObjectiveConfig, model: HierarchicalVAE) -> None:
    """Raise UserError if the objective names layers, or penalties, that the model has none of."""
    layer_schemes(objective, layer_names(model))
    if objective.penalties is not None:
        Penalising(objective, model)


class Penalising:
    """Computes the penalties that an objective names.

    Args:
        objective: The objective; it has penalties.
        model: The model whose weights they are of.

    Raises:
        UserError: If the model has nothing that a penalty is of.
    """

    def __init__(self, objective: ObjectiveConfig, model: nn.Module) -> None:
        assert objective.penalties is not None
        self.penalties, self.annealing = objective.penalties, objective.kl_annealing
        self.spectral = SpectralNorms(model) if self.penalties.spectral else None
        self.batch_norm = BatchNormScales(model) if self.penalties.batch_norm else None

    def __call__(self, step: Step) -> dict[str, Cost]:
        """The penalties by name; one that has no weight is not computed."""
        costs = {}
        if self.spectral is not None:
            value = self.spectral()
            costs["spectral"] = Cost(value, self._weight(self.penalties.spectral, step) * value)
        if self.batch_norm is not None:
            value = self.batch_norm()
            weight = self._weight(self.penalties.batch_norm, step)
            costs["batch_norm"] = Cost(value, weight * value)
        return costs

    def _weight(self, weight: float, step: Step) -> Tensor:
        """start^(1 - b) weight^b, where b is the annealing of the KL; 0-dim."""
        share = annealing_at(self.annealing, step).clamp(max=1.0)
        start = weight if self.penalties.start is None else self.penalties.start
        return (start ** (1.0 - share) * weight**share).float()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"spectral": self.spectral and self.spectral.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds; a penalty that is new begins by itself."""
        if self.spectral is not None and state["spectral"] is not None:
            self.spectral.load_state_dict(state["spectral"])
