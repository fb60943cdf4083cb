"""One optimiser step, without a word from the device to the host.

    begin      what the host says of a step: its number, its learning rate, the seed of its noise
    gradients  the objective and its gradients, shard by shard
    update     everything else, on the device alone

A batch is cut into as many shards as there are processes times `state.accumulate`; the gradients
of all of them add up to those of the batch. The noise of shard j is a function of (seed, step, j),
so two processes compute what one does that takes the batch in two shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ladder.config import Config, ExponentialDecay, ModelConfig, TrainConfig
from ladder.data import binarize, flipped
from ladder.noise import reseed
from ladder.objectives import Terms, elbo
from ladder.train import ema
from ladder.train.device import memory_format, products
from ladder.train.memory import gives_way
from ladder.train.penalising import Cost
from ladder.train.schemes import Weights, annealings_at, weights_at
from ladder.train.state import State
from ladder.train.world import summed

KL = "kl/"  # before the name of a layer, among the metrics


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
    model: Callable[[Tensor], Any], x: Tensor, weights: Weights, config: Config[ModelConfig]
) -> Terms:
    """The objective on a batch `[B, *shape]`, networks in the configured precision."""
    low = config.train.precision == "bfloat16"
    with torch.autocast(x.device.type, dtype=torch.bfloat16) if low else nullcontext():
        px, latents = model(x)
    return elbo(px, latents, x, *weights)


@cache
def compiled_terms() -> Callable[..., Terms]:
    """`forward_terms` compiled as a whole; its noise is that of the uncompiled one."""
    return torch.compile(
        forward_terms, fullgraph=True, dynamic=False, options={"fallback_random": True}
    )


def prepare(x: Tensor, step: int, config: Config[ModelConfig], shard: int = 0) -> Tensor:
    """Begin a shard: seed its noise, then draw of its data what is to be drawn anew."""
    reseed(config.train.seed, step, shard)
    return prepared(x, config)


def prepared(x: Tensor, config: Config[ModelConfig]) -> Tensor:
    """Mirror and binarise data `[B, *shape]`, if that is to be drawn anew."""
    x = flipped(x) if config.data.flip else x
    x = binarize(x) if config.data.binarize == "dynamic" else x
    return x.to(memory_format=memory_format(config, x.device))


def train_step(
    state: State, x: Tensor, config: Config[ModelConfig], of: int | None = None
) -> None:
    """Update the weights once; metrics go to the meter, a failure to `state.failed`.

    If memory runs out, `state.accumulate` is doubled and the step taken again.

    Args:
        state: The run; changed in place.
        x: Grey or binary data in [0, 1], `[B, *shape]`, on the device; of several processes, this
            one's part.
        config: The run's configuration.
        of: Data of all processes together; `None` for one process, whose data they are.
    """
    of = x.shape[0] if of is None else of
    begin(state, config)
    while (measured := _measured(state, x, config, of)) is None:
        reseed(config.train.seed, state.step, state.first_shard)
    update(state, measured, config, x.shape[0], of)
    end(state, of)


def begin(state: State, config: Config[ModelConfig]) -> None:
    """Tell the device what depends on the step; nothing is waited for."""
    state.clock.fill_(state.step)
    rate = lr_at(config.train, state.step, state.total)
    if state.rate is None:
        state.optimizer.param_groups[0]["lr"] = rate
    else:
        state.rate.fill_(rate)
    reseed(config.train.seed, state.step, state.first_shard)


def end(state: State, of: int) -> None:
    """Count the step and its data, on the host."""
    state.meter.data += of
    state.step += 1


def _measured(
    state: State, x: Tensor, config: Config[ModelConfig], of: int
) -> dict[str, Tensor] | None:
    try:
        return gradients(state, x, config, of)
    except RuntimeError as error:
        if not gives_way(state, error, x.shape[0]):
            raise
    return None  # outside of the except block, which holds what filled the memory


def gradients(state: State, x: Tensor, config: Config[ModelConfig], of: int) -> dict[str, Tensor]:
    """Leave the gradients of a step in the parameters.

    Args:
        state: The run, after `begin`.
        x: This process's data, `[B, *shape]`.
        config: The run's configuration.
        of: Data of all processes together.

    Returns:
        Metrics, 0-dim: means over this process's data, in nats per datum.
    """
    weights = weights_at(config.objective, state.schemes, state.multipliers, state.clock)
    counted = state.world.counted(x.shape[0], of)
    scale = x[0].numel() if config.objective.per == "dimension" else 1
    if state.statistics is not None:
        state.statistics.keep()
    # A smaller batch, such as the last of an epoch, is not worth another compilation.
    whole = x.shape[0] == config.train.batch_size and state.accumulate == 1
    measure = compiled_terms() if config.train.compile == "model" and whole else forward_terms
    forget_gradients(state)
    means: dict[str, Tensor] = {}
    costs: dict[str, Cost] = {}
    left = x.shape[0]
    for shard in shards(state, x, state.step, config):
        left -= shard.shape[0]
        with products(config.train.precision, x.device), state.synchronised(left == 0):
            terms = measure(state.network, shard, weights, config)
            # The processes' gradients are averaged, but each may have another number of data.
            share = state.world.size * min(shard.shape[0], counted) / of
            loss = terms.loss if share == 1 else share * terms.loss
            if left == 0 and state.penalising is not None:
                costs = state.penalising(state.clock)
            loss = penalised(loss, costs)
            (loss if scale == 1 else loss / scale).backward()
        _add(means, metrics(terms), shard.shape[0] / x.shape[0])
    means["train/loss"] = penalised(means["train/loss"], costs).detach()
    return {**{f"penalty/{n}": cost.value.detach() for n, cost in costs.items()}, **means}


def penalised(loss: Tensor, costs: dict[str, Cost]) -> Tensor:
    """The loss with its penalties, 0-dim."""
    return sum((cost.weighted for cost in costs.values()), loss)


def forget_gradients(state: State) -> None:
    """What `zero_grad` does, without walking the optimiser's groups."""
    for parameter in state.parameters:
        parameter.grad = None


def shards(state: State, x: Tensor, step: int, config: Config[ModelConfig]) -> Iterator[Tensor]:
    """Cut this process's data into prepared shards; noise is seeded for all but the first."""
    for number, part in enumerate(x.tensor_split(state.accumulate)):
        if number and part.shape[0]:
            reseed(config.train.seed, step, state.first_shard + number)
        if part.shape[0]:
            yield prepared(part, config)


def _add(means: dict[str, Tensor], values: dict[str, Tensor], share: float) -> None:
    """Add a shard's share of the metrics."""
    for name, value in values.items():
        part = value.detach() if share == 1 else share * value.detach()
        means[name] = means[name] + part if name in means else part


@torch.no_grad()
def update(
    state: State, means: dict[str, Tensor], config: Config[ModelConfig], n: int, of: int
) -> None:
    """Clip, judge, and change the weights and all that follows them.

    Args:
        state: The run, with gradients.
        means: What `gradients` returned.
        config: The run's configuration.
        n: This process's data.
        of: Data of all processes together.
    """
    norm = gradient_norm(state.parameters, config.train.grad_clip)
    if config.train.grad_clip_value is not None:
        nn.utils.clip_grad_value_(state.parameters, config.train.grad_clip_value)
    counted = state.world.counted(n, of)
    finite, kl = _together(state, means, norm, counted / of)
    judge(state, norm, finite)
    if state.statistics is not None and state.skipping.on:
        state.statistics.put_back(state.omitted)
    state.optimizer.step()
    if config.train.ema is not None:
        ema.update(state, config.train.ema)
    if state.multipliers is not None:
        annealing = annealings_at(state.schemes, state.clock)
        state.multipliers.update(kl, annealing, state.omitted)
    logged = {**means, "train/grad_norm": norm}
    state.meter.add(logged, counted, finite if state.skipping.on else None)


def _together(
    state: State, means: dict[str, Tensor], norm: Tensor, share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether loss and gradient are finite, and the KL of held layers, of all processes."""
    finite = means["train/loss"].isfinite() & norm.isfinite()
    held = [] if state.multipliers is None else state.multipliers.names
    kl = {name: means[KL + padded(name)] for name in held}
    if state.world.size == 1:
        return finite, kl
    said = torch.stack([(~finite).to(norm), *(share * value for value in kl.values())])
    said = summed(said, state.world)
    return said[0] == 0, dict(zip(kl, said[1:].unbind(), strict=True))


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
    kl = {f"{KL}{padded(name)}": v.mean() for name, v in terms.kl.items()}
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
