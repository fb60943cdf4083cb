"""The objective's KL schemes for the layers of a model, and what they weigh at a step."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ladder.config import FreeBits, ObjectiveConfig, Schedule
from ladder.errors import UserError, suggest
from ladder.objectives import Balancing
from ladder.schedules import SCHEDULES, Step
from ladder.train.multipliers import Multipliers


class Scheme(NamedTuple):
    """What the objective says about one layer; the fields are those of `LayerObjective`."""

    beta: float
    kl_annealing: Schedule
    free_bits: FreeBits | None
    kl_target: float | None


class Weights(NamedTuple):
    """What `elbo` takes besides the model's values."""

    beta: Tensor | dict[str, Tensor]
    free_bits: FreeBits | dict[str, FreeBits | None] | None
    balancing: Balancing | None


Schemes = dict[str, Scheme]


def layer_schemes(objective: ObjectiveConfig, names: Sequence[str]) -> Schemes:
    """What the objective says about every layer.

    Args:
        objective: The objective; what a layer does not say comes from its own fields.
        names: The model's layers.

    Returns:
        Schemes by name, in the order of `names`.

    Raises:
        UserError: If a key of `objective.layers` fits no layer, or two settings of a layer
            exclude each other.
    """
    for key in objective.layers:
        if not any(_fits(name, key) for name in names):
            raise UserError(f"objective.layers: no layer is '{key}'{suggest(key, names)}")
    schemes = {name: _scheme(objective, name) for name in names}
    for name, scheme in schemes.items():
        _check_target(name, scheme)
    return schemes


def _fits(name: str, key: str) -> bool:
    return name == key or fnmatchcase(name, key)


def _scheme(objective: ObjectiveConfig, name: str) -> Scheme:
    said: dict[str, Any] = {field: getattr(objective, field) for field in Scheme._fields}
    # A name comes after every pattern; apart from that the order is the user's.
    for key in sorted(objective.layers, key=lambda key: key == name):
        if _fits(name, key):
            values = {field: getattr(objective.layers[key], field) for field in Scheme._fields}
            said |= {field: v for field, v in values.items() if v != "inherit"}
    return Scheme(**said)


def _check_target(name: str, scheme: Scheme) -> None:
    target, floor = scheme.kl_target, scheme.free_bits
    if target is None:
        return
    if scheme.beta == 0.0:
        raise UserError(
            f"objective: layer {name} has a kl_target, which needs a beta above 0 to multiply"
        )
    if floor is not None and floor.per == "layer" and floor.nats >= target:
        raise UserError(
            f"objective: layer {name} has free bits of {floor.nats:g} nats, which should be below "
            f"its kl_target of {target:g}, or null"
        )


def annealing_at(schedule: Schedule, step: Step) -> Tensor:
    """Value of a schedule at a step, 0-dim float64."""
    return SCHEDULES[schedule.kind](step, **_settings(schedule))


@cache
def _settings(schedule: Schedule) -> dict[str, Any]:
    return schedule.model_dump(exclude={"kind"})


def beta_at(objective: ObjectiveConfig, step: Step) -> Tensor:
    """The objective's own weight of the KL terms at a step, 0-dim float32."""
    return (objective.beta * annealing_at(objective.kl_annealing, step)).float()


def annealings_at(schemes: Schemes, step: Step) -> dict[str, Tensor]:
    """Annealing of every layer at a step, 0-dim float64; each schedule is asked once."""
    values = {s.kl_annealing: annealing_at(s.kl_annealing, step) for s in schemes.values()}
    return {name: values[scheme.kl_annealing] for name, scheme in schemes.items()}


def weights_at(
    objective: ObjectiveConfig, schemes: Schemes, multipliers: Multipliers | None, step: Step
) -> Weights:
    """What the loss of a step weighs.

    Args:
        objective: The objective.
        schemes: What it says about every layer.
        multipliers: Those of the layers with a `kl_target`.
        step: The step, or it on the device, where the arithmetic then is.

    Returns:
        Arguments of `elbo`; single values where all layers are alike.
    """
    floors = {name: scheme.free_bits for name, scheme in schemes.items()}
    alike = list(floors.values()) == [objective.free_bits] * len(floors)
    return Weights(
        _betas(objective, schemes, multipliers, step),
        objective.free_bits if alike else floors,
        _balancing(objective, step),
    )


def _betas(
    objective: ObjectiveConfig, schemes: Schemes, multipliers: Multipliers | None, step: Step
) -> Tensor | dict[str, Tensor]:
    common = (objective.beta, objective.kl_annealing)
    if multipliers is None and all(s[:2] == common for s in schemes.values()):
        return beta_at(objective, step)
    annealing = annealings_at(schemes, step)
    betas = {name: (s.beta * annealing[name]).float() for name, s in schemes.items()}
    factors = {} if multipliers is None else multipliers.factors(annealing)
    return betas | {name: betas[name] * factor for name, factor in factors.items()}


def _balancing(objective: ObjectiveConfig, step: Step) -> Balancing | None:
    balance = objective.balance
    if balance is None:
        return None
    if balance.steps is None:
        on = annealing_at(objective.kl_annealing, step) < 1.0
    else:
        on = torch.as_tensor(step) < balance.steps
    return Balancing(balance.by, on.float())


def new_multipliers(
    objective: ObjectiveConfig, schemes: Schemes, device: torch.device
) -> Multipliers | None:
    """Multipliers of the layers that have a `kl_target`; `None` if none has."""
    targets = {n: s.kl_target for n, s in schemes.items() if s.kl_target is not None}
    return Multipliers(targets, objective.kl_target_rate, device) if targets else None
