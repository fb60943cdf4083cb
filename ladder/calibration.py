"""Batch norm's running statistics, taken again from samples at a temperature."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ladder.errors import UserError, WorkFailed
from ladder.likelihoods import Observation
from ladder.model import HierarchicalVAE, Temperature
from ladder.noise import seeded
from ladder.sampling import check_temperature


@torch.no_grad()
def recalibrate(
    model: HierarchicalVAE,
    temperature: Temperature = 1.0,
    steps: int = 500,
    n: int = 16,
    seed: int | None = 0,
) -> HierarchicalVAE:
    """Copy a model and fit the batch norms of its generative path to what it generates.

    Running statistics come from reconstructions of training data. Samples at a low temperature
    have others, so that a sampler that uses the old ones drifts (Vahdat & Kautz 2020).
    Here they follow batches of samples; the upward pass and all weights stay what they are. Where
    several processes train together, all of them have to call it, with one seed.

    Args:
        model: The model; it stays as it is.
        temperature: At which samples will be drawn.
        steps: Batches that the statistics follow, each with the momentum of the batch norm (0.05
            in NVAE: after 500 batches nothing of the old ones is left).
        n: Samples in a batch.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UserError: If there is no batch norm to calibrate, or an argument is out of range.
        WorkFailed: If samples or statistics are not finite.
    """
    check_temperature(model, temperature)
    for name, value, least in (("steps", steps, 1), ("n", n, 2)):
        if value < least:
            raise UserError(f"recalibrate: {name}={value} should be at least {least}")
    calibrated = copy.deepcopy(model).eval()
    norms = _norms(calibrated)
    if not norms:
        raise UserError("recalibrate: the model has no batch norm on its generative path")
    for norm in norms.values():
        norm.train()
    with seeded(seed):
        for step in range(1, steps + 1):
            px, _ = calibrated.decode(n, temperature=temperature)
            _check(step, px, norms)
    return calibrated.eval()


def _norms(model: HierarchicalVAE) -> dict[str, _BatchNorm]:
    parts: list[nn.Module] = [model.top_down, model.likelihood]
    own = {id(module) for part in parts for module in part.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and id(module) in own
    }


def _check(step: int, px: Observation, norms: Mapping[str, _BatchNorm]) -> None:
    """Ask the device once whether samples and statistics are finite."""
    variances = {name: norm.running_var for name, norm in norms.items()}
    sums = {name: v.sum() for name, v in variances.items() if v is not None}
    values = torch.stack([px.mean.sum(), *sums.values()])
    if bool(values.isfinite().all()):
        return
    wrong = next((name for name, v in sums.items() if not bool(v.isfinite())), None)
    what = "a sample is" if wrong is None else f"the statistics of {wrong} are"
    raise WorkFailed(
        f"recalibrate: at step {step} {what} not finite; use a temperature nearer to 1, or a "
        "larger n"
    )
