"""One optimiser step, with no word from the device to the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ladder.config import Config, ExponentialDecay, ModelConfig, TrainConfig
from ladder.data import binarize, flipped
from ladder.model import HierarchicalVAE
from ladder.noise import reseed
from ladder.objectives import Terms, elbo
from ladder.train import ema
from ladder.train.schemes import Weights, annealings_at, weights_at
from ladder.train.state import State, memory_format


def lr_at(train: TrainConfig, step: int, total: int | None = None) -> float:
    """Learning rate of a step: a linear rise over the warm-up, then flat or a decay.

    Args:
        train: The training section.
        step: The step.
        total: Steps of the whole training, at whose end a cosine ends; not needed without one.

    Returns:
        The rate.
    """
    if step < train.warmup_steps:
        before = 0 if train.warmup_from_zero else 1
        return train.lr * (step + before) / (train.warmup_steps + before)
    decay = train.lr_decay
    if decay is None:
        return train.lr
    if isinstance(decay, ExponentialDecay):
        return max(train.lr * decay.rate ** (step - train.warmup_steps), decay.least)
    assert total is not None
    # Goes on from the last rate of the warm-up, as published, which is a step below `lr`.
    peak = lr_at(train, train.warmup_steps - 1) if train.warmup_steps else train.lr
    stair = (step - train.warmup_steps) // decay.every
    last = (total - 1 - train.warmup_steps) // decay.every
    share = min(stair / last, 1.0) if last else 0.0
    return decay.end + (peak - decay.end) * 0.5 * (1.0 + math.cos(math.pi * share))


def forward_terms(
    model: HierarchicalVAE, x: Tensor, weights: Weights, config: Config[ModelConfig]
) -> Terms:
    """The objective on a batch `[B, *shape]`, networks in the configured precision."""
    low = config.train.precision == "bfloat16"
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
        px, latents = model(x)
    return elbo(px, latents, x, *weights)


def prepare(x: Tensor, step: int, config: Config[ModelConfig]) -> Tensor:
    """Begin a step: seed its noise, mirror and binarise the batch if that is to be drawn anew."""
    reseed(config.train.seed, step)
    x = flipped(x) if config.data.flip else x
    x = binarize(x) if config.data.binarize == "dynamic" else x
    return x.to(memory_format=memory_format(config, x.device))


def train_step(state: State, x: Tensor, config: Config[ModelConfig]) -> None:
    """Update the weights once; metrics go to the meter, a failure to `state.failed`.

    Args:
        state: The run; changed in place.
        x: Grey or binary data in [0, 1], `[B, *shape]`, on the device.
        config: The run's configuration.
    """
    x = prepare(x, state.step, config)
    weights = weights_at(config.objective, state.schemes, state.multipliers, state.step)
    before = None if state.statistics is None else state.statistics.read()
    terms = forward_terms(state.model, x, weights, config)
    loss, penalties = penalised(state, terms, state.step)
    state.optimizer.zero_grad()
    (loss / x[0].numel() if config.objective.per == "dimension" else loss).backward()
    norm = gradient_norm(state.parameters, config.train.grad_clip)
    if config.train.grad_clip_value is not None:
        nn.utils.clip_grad_value_(state.parameters, config.train.grad_clip_value)
    finite = loss.isfinite() & norm.isfinite()
    judge(state, norm, finite)
    if state.statistics is not None and before is not None:
        state.statistics.put_back(before, state.omitted)
    state.optimizer.param_groups[0]["lr"] = lr_at(config.train, state.step, state.total)
    state.optimizer.step()
    if config.train.ema is not None:
        ema.update(state, config.train.ema)
    if state.multipliers is not None:
        annealing = annealings_at(state.schemes, state.step)
        state.multipliers.update(terms.kl, annealing, state.omitted)
    counted = finite if state.skipping.on else None
    logged = {**penalties, **metrics(terms), "train/loss": loss, "train/grad_norm": norm}
    state.meter.add(logged, x.shape[0], counted)
    state.step += 1


def penalised(state: State, terms: Terms, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss with its penalties, 0-dim, and each penalty without its weight, by metric."""
    costs = {} if state.penalising is None else state.penalising(step)
    loss = sum((cost.weighted for cost in costs.values()), terms.loss)
    return loss, {f"penalty/{name}": cost.value for name, cost in costs.items()}


@torch.no_grad()
def judge(state: State, norm: Tensor, finite: Tensor) -> None:
    """Decide on the device whether this step, or from now on every step, changes nothing."""
    skip, failed = state.skipping.decide(norm, finite)
    state.failed.copy_(torch.maximum(state.failed, failed.float()))
    state.omitted.copy_(torch.maximum(state.failed, skip.float()))
    state.healthy.add_(1.0 - state.failed)


def gradient_norm(parameters: list[nn.Parameter], clip: float | None) -> Tensor:
    """Global gradient norm before clipping; with `clip` the gradients are rescaled to it."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def metrics(terms: Terms) -> dict[str, Tensor]:
    """Names and 0-dim batch means of what is logged at every step, in nats per datum."""
    kl = {f"kl/{padded(name)}": v.mean() for name, v in terms.kl.items()}
    log_px = terms.log_px.mean()
    return {
        "train/loss": terms.loss,
        "train/elbo": terms.elbo.mean(),
        "train/nll": -log_px,
        "train/kl": torch.stack(list(kl.values())).sum(),
        **kl,
    }


def padded(name: str) -> str:
    """`z1` as `z01`, so that names of metrics sort like the layers."""
    return f"z{int(name[1:]):02d}"
