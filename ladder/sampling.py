"""What one does with a model: encode, sample, decode, reconstruct, interpolate, swap, vary.

Free functions over dicts of z by layer name (`z1` next to the data), for latents of any shape,
`[B, D]` or `[B, C, *space]`. None of them draws gradients, and none changes whether the model is
in training mode: call `model.eval()` first. They return p(x|z), so take `.mean` for a picture or
`.sample()` for a draw. A temperature is one number for all priors, or a number by layer name,
where layers that are not named have 1; it never touches a posterior.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ladder.batch_axis import joined
from ladder.errors import UserError, suggest
from ladder.finite import finite
from ladder.latent import Latent
from ladder.likelihoods import Observation
from ladder.model import HierarchicalVAE, Temperature
from ladder.noise import seeded
from ladder.walks import arc, line

T = TypeVar("T")


def layer_names(model: HierarchicalVAE) -> list[str]:
    """Names of the stochastic layers, top first."""
    return list(model.top_down.layers)


@torch.no_grad()
def encode(model: HierarchicalVAE, x: Tensor, seed: int | None = None) -> dict[str, Latent]:
    """Infer every latent of `x`.

    Args:
        model: The model.
        x: Data, `[B, *shape]`.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        Latents by name, top first: the draw `z`, its prior, its posterior `q`.
    """
    with seeded(seed):
        latents: dict[str, Latent] = model(x)[1]
    return latents


def posterior_means(latents: Mapping[str, Latent]) -> dict[str, Tensor]:
    """Mean of every posterior by name."""
    return {name: latent.q.mean for name, latent in latents.items() if latent.q is not None}


def top_latents(latents: Mapping[str, T], k: int) -> dict[str, T]:
    """Keep the highest of all latents, for `decode`.

    Args:
        latents: Latents, or anything else, by layer name.
        k: How many are kept, from 1 to all of them.

    Returns:
        Those kept, top first.

    Raises:
        UserError: If `k` is out of range.
    """
    if not 1 <= k <= len(latents):
        raise UserError(f"top_latents: k={k} is not between 1 and {len(latents)}")
    names = sorted(latents, key=lambda name: int(name.removeprefix("z")), reverse=True)
    return {name: latents[name] for name in names[:k]}


@torch.no_grad()
def sample(
    model: HierarchicalVAE,
    n: int,
    temperature: Temperature = 1.0,
    seed: int | None = None,
    chunk: int | None = None,
) -> Observation:
    """Generate `n` data from the prior.

    Args:
        model: The model.
        n: Number of data.
        temperature: Multiplies the standard deviation of every prior, or by layer name of some;
            0 is deterministic.
        seed: Seed of the draws; `None` goes on with torch's generator.
        chunk: Data that pass through the model at once, which bounds its memory; `None` for all.
            What a seed draws depends on it.

    Returns:
        p(x|z), `[n, *shape]`.

    Raises:
        UserError: If `n`, `chunk` or a temperature is out of range, or a name is not a layer's.
        WorkFailed: If a sample is not finite.
    """
    size = n if chunk is None else chunk
    check_number("sample", n)
    check_number("sample", size, "chunk")
    check_temperature(model, temperature)
    parts = []
    with seeded(seed):
        for done in range(0, n, size):
            px, latents = model.decode(min(size, n - done), temperature=temperature)
            parts.append(finite("sample", px, latents))
    return joined(parts)


@torch.no_grad()
def draw_prior(
    model: HierarchicalVAE, n: int, temperature: Temperature = 1.0, seed: int | None = None
) -> dict[str, Latent]:
    """Draw every latent from the prior.

    Args:
        model: The model.
        n: Number of draws.
        temperature: Multiplies the standard deviation of every prior, or by layer name of some.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        Latents by name, top first; `q` and `kl` are `None`.

    Raises:
        UserError: If `n` or a temperature is out of range, or a name is not a layer's.
    """
    check_number("draw_prior", n)
    check_temperature(model, temperature)
    with seeded(seed):
        px, latents = model.decode(n, temperature=temperature)
    finite("draw_prior", px, latents)
    return latents


@torch.no_grad()
def decode(
    model: HierarchicalVAE,
    z: Mapping[str, Tensor | Latent],
    temperature: Temperature = 1.0,
    rest: Literal["prior", "mean"] = "prior",
    seed: int | None = None,
) -> Observation:
    """Decode the latents that are given; the rest follows from the priors, given what is above.

    Args:
        model: The model.
        z: Values by layer name, each `[B, *latent]`, or latents as `encode` returns them; any
            subset but the empty one.
        temperature: Of the priors drawn from; 0 takes their means.
        rest: What latents that are not given are: `prior`, a draw, or `mean`, the same as
            temperature 0.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        p(x|z), `[B, *shape]`.

    Raises:
        UserError: If a name is not a layer's, no latent is given, or an argument is out of range.
        WorkFailed: If a datum is not finite.
    """
    _check_names(model, z)
    check_temperature(model, temperature)
    if not z:
        raise UserError("decode: no latent is given; to draw all of them, use sample")
    if rest not in ("prior", "mean"):
        raise UserError(f"decode: rest={rest!r} should be 'prior' or 'mean'")
    if rest == "mean" and not (isinstance(temperature, int | float) and temperature == 1.0):
        raise UserError("decode: rest='mean' draws nothing, so it goes without a temperature")
    values = {name: v.z if isinstance(v, Latent) else v for name, v in z.items()}
    sizes = {v.shape[0] for v in values.values()}
    if len(sizes) != 1:
        raise UserError(
            f"decode: latents are given for {sorted(sizes)} data; give as many of each"
        )
    t = 0.0 if rest == "mean" else temperature
    with seeded(seed):
        px, latents = model.decode(sizes.pop(), values, t)
    return finite("decode", px, latents)


def reconstruct(
    model: HierarchicalVAE,
    x: Tensor,
    top: int | None = None,
    temperature: Temperature = 0.0,
    seed: int | None = None,
) -> Observation:
    """Encode `x`, keep the `top` highest latents, and decode with the rest from their priors.

    Args:
        model: The model.
        x: Data, `[B, *shape]`.
        top: How many layers are kept, from the top; `None` keeps all.
        temperature: Of the priors of the other layers; 0 takes their means.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        p(x|z), `[B, *shape]`.

    Raises:
        UserError: If `top` is not between 1 and the number of layers.
    """
    layers = len(layer_names(model))
    kept = layers if top is None else top
    if not 1 <= kept <= layers:
        raise UserError(f"reconstruct: top={top} is not between 1 and {layers}")
    # Seeded once: posteriors and priors must not share their noise.
    with seeded(seed):
        return decode(model, top_latents(encode(model, x), kept), temperature)


def interpolate(
    model: HierarchicalVAE,
    a: Tensor,
    b: Tensor,
    levels: Collection[str],
    steps: int = 10,
    seed: int | None = None,
    path: Literal["line", "arc"] = "line",
) -> Observation:
    """Walk between the posterior means of two data, at one level or several.

    Args:
        model: The model.
        a: Where the walk begins, `[*shape]`.
        b: Where it ends, `[*shape]`.
        levels: Names of the layers that walk; the others are the means of their priors, given
            what is above.
        steps: Number of points, both ends included; at least 2.
        seed: Seed of the draws that posteriors condition on.
        path: `line`, or `arc`: the direction turns evenly and the length changes with it, each
            level seen as one vector. On an arc a walk at the top stays where N(0, I) has its mass.

    Returns:
        p(x|z), `[steps, *shape]`.

    Raises:
        UserError: If a level is not a layer's name, or an argument is out of range.
    """
    levels = [levels] if isinstance(levels, str) else levels
    _check_names(model, levels)
    check_number("interpolate", steps, "steps", least=2)
    _check_pair("interpolate", a, b)
    if not levels:
        raise UserError("interpolate: no level is named; give one of the layers' names")
    if path not in ("line", "arc"):
        raise UserError(f"interpolate: path={path!r} should be 'line' or 'arc'")
    go = line if path == "line" else arc
    with seeded(seed):
        means = posterior_means(encode(model, torch.stack([a, b])))
        walk = {name: go(means[name][0], means[name][1], steps) for name in levels}
        return decode(model, walk, rest="mean")


def swap(
    model: HierarchicalVAE,
    a: Tensor | Mapping[str, Latent],
    b: Tensor | Mapping[str, Latent],
    levels: int | Collection[str],
    seed: int | None = None,
) -> Observation:
    """Decode some levels of `a` with all others of `b`: "coarse of A, fine of B".

    Each datum is encoded by itself, both with the same noise, so `swap(model, a, a, levels)` is
    `reconstruct(model, a)`. Where x depends on z1 alone, as below a Markov state, only the datum
    that gives z1 is seen.

    Args:
        model: The model.
        a: Data, `[B, *shape]`, or their latents as `encode` returns them.
        b: The same; each datum goes with the one of `a` in its place.
        levels: What comes from `a`: so many layers from the top (0 is none), or layers by name.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        p(x|z), `[B, *shape]`.

    Raises:
        UserError: If a level is not there, or `a` and `b` are not alike.
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        _check_pair("swap", a, b)
    names = layer_names(model)
    if isinstance(levels, int):
        if not 0 <= levels <= len(names):
            raise UserError(f"swap: levels={levels} is not between 0 and {len(names)}")
        levels = names[:levels]
    levels = [levels] if isinstance(levels, str) else levels
    _check_names(model, levels)
    with seeded(seed):
        with _replayed(a, b):
            of_a = encode(model, a) if isinstance(a, Tensor) else a
        of_b = encode(model, b) if isinstance(b, Tensor) else b
    z = {name: (of_a if name in levels else of_b).get(name) for name in names}
    if missing := [name for name, latent in z.items() if latent is None]:
        raise UserError(f"swap: neither gives {', '.join(missing)}; give what encode returns")
    return decode(model, {name: latent for name, latent in z.items() if latent is not None})


@torch.no_grad()
def vary(
    model: HierarchicalVAE,
    z: Mapping[str, Tensor | Latent],
    level: str,
    unit: int | Sequence[int],
    values: Sequence[float] | Tensor,
) -> Observation:
    """Give one unit of one datum's latents a range of values, all else as it is.

    Args:
        model: The model.
        z: Latents of one datum by layer name, each `[1, *latent]`, the level among them; those
            not given are the means of their priors, and so follow what is above.
        level: Name of the unit's layer.
        unit: Index into `[*latent]`; in `[C, *space]` one number is a whole channel.
        values: What the unit becomes.

    Returns:
        p(x|z), `[len(values), *shape]`.

    Raises:
        UserError: If there is no such unit, or `z` holds more than one datum.
    """
    given = {name: v.z if isinstance(v, Latent) else v for name, v in z.items()}
    _check_names(model, [*given, level])
    if level not in given:
        raise UserError(f"vary: z holds no '{level}'{suggest(level, given)}")
    if any(v.shape[0] != 1 for v in given.values()):
        raise UserError("vary: z should hold the latents of one datum, each [1, *latent]")
    index = [unit] if isinstance(unit, int) else list(unit)
    shape = list(given[level].shape[1:])
    if not 1 <= len(index) <= len(shape) or not all(
        0 <= i < size for i, size in zip(index, shape, strict=False)
    ):
        raise UserError(f"vary: no unit {unit}: the latents of {level} have shape {shape}")
    many = {name: v.repeat(len(values), *[1] * (v.ndim - 1)) for name, v in given.items()}
    moved = many[level].movedim(0, -1)[tuple(index)]
    moved.copy_(torch.as_tensor(values).to(moved))
    # Nothing is drawn, but priors at temperature 0 consume noise: that of a seed, given back.
    return decode(model, many, rest="mean", seed=0)


def _replayed(a: Tensor | Mapping[str, Latent], b: object) -> AbstractContextManager[None]:
    """Where both are to be encoded: the generators come back as they were for the second."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return nullcontext()
    return torch.random.fork_rng([a.device] if a.is_cuda else [])


def _check_names(model: HierarchicalVAE, names: Collection[str]) -> None:
    layers = layer_names(model)
    for name in names:
        if name not in layers:
            raise UserError(f"no layer '{name}'{suggest(name, layers)}")


def check_number(function: str, value: int, name: str = "n", least: int = 1) -> None:
    """Raise UserError unless an argument is large enough."""
    if not isinstance(value, int):
        raise UserError(f"{function}: {name}={value!r} should be a whole number")
    if value < least:
        raise UserError(f"{function}: {name}={value} should be at least {least}")


def _check_pair(function: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise UserError(
            f"{function}: a has shape {list(a.shape)} and b {list(b.shape)}; give two alike"
        )


def check_temperature(model: HierarchicalVAE, temperature: Temperature) -> None:
    """Raise UserError unless a temperature is finite and 0 or above, and names only layers."""
    if isinstance(temperature, Mapping):
        _check_names(model, temperature)
    else:
        temperature = {"": temperature}
    for name, t in temperature.items():
        if not _is_temperature(t):
            where = f" of {name}" if name else ""
            raise UserError(f"temperature{where}: {t!r} should be a finite number, 0 or above")


def _is_temperature(value: object) -> bool:
    try:
        t = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool((t.isfinite() & (t >= 0)).all())
