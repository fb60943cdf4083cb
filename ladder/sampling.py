"""What one does with a model: encode, sample, reconstruct, decode from the top, interpolate.

Free functions over dicts of z by layer name (`z1` next to the data). None of them draws gradients,
and none changes whether the model is in training mode: call `model.eval()` first. They return
p(x|z), so take `.mean` for a picture or `.sample()` for a draw.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ladder.errors import UserError, suggest
from ladder.latent import Latent
from ladder.likelihoods import Observation
from ladder.model import HierarchicalVAE
from ladder.noise import seeded


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


@torch.no_grad()
def sample(
    model: HierarchicalVAE, n: int, temperature: float = 1.0, seed: int | None = None
) -> Observation:
    """Generate `n` data from the prior.

    Args:
        model: The model.
        n: Number of data.
        temperature: Multiplies the standard deviation of every prior; 0 is deterministic.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        p(x|z), `[n, *shape]`.

    Raises:
        UserError: If `n` or the temperature is out of range.
    """
    if n < 1 or not temperature >= 0:
        raise UserError("sample: n should be at least 1 and the temperature at least 0")
    with seeded(seed):
        px: Observation = model.decode(n, temperature=temperature)[0]
    return px


@torch.no_grad()
def draw_prior(
    model: HierarchicalVAE, n: int, temperature: float = 1.0, seed: int | None = None
) -> dict[str, Latent]:
    """Draw every latent from the prior.

    Args:
        model: The model.
        n: Number of draws.
        temperature: Multiplies the standard deviation of every prior.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        Latents by name, top first; `q` and `kl` are `None`.
    """
    with seeded(seed):
        latents: dict[str, Latent] = model.decode(n, temperature=temperature)[1]
    return latents


@torch.no_grad()
def decode(
    model: HierarchicalVAE,
    z: Mapping[str, Tensor | Latent],
    temperature: float = 1.0,
    seed: int | None = None,
) -> Observation:
    """Decode latents, drawing those that are not given from their priors.

    Args:
        model: The model.
        z: Values by layer name, each `[B, *latent]`, or latents as `encode` returns them; at
            least one.
        temperature: Of the priors drawn from; 0 takes their means.
        seed: Seed of the draws; `None` goes on with torch's generator.

    Returns:
        p(x|z), `[B, *shape]`.

    Raises:
        UserError: If a name is not a layer's, or no latent is given.
    """
    _known(model, z)
    if not z:
        raise UserError("decode: no latent is given; to draw all of them, use sample")
    values = {name: v.z if isinstance(v, Latent) else v for name, v in z.items()}
    sizes = {v.shape[0] for v in values.values()}
    if len(sizes) != 1:
        raise UserError(
            f"decode: latents are given for {sorted(sizes)} data; give as many of each"
        )
    with seeded(seed):
        px: Observation = model.decode(sizes.pop(), values, temperature)[0]
    return px


def reconstruct(
    model: HierarchicalVAE,
    x: Tensor,
    top: int | None = None,
    temperature: float = 0.0,
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
    names = layer_names(model)
    kept = len(names) if top is None else top
    if not 1 <= kept <= len(names):
        raise UserError(f"reconstruct: top={top} is not between 1 and {len(names)}")
    # Seeded once: posteriors and priors must not share their noise.
    with seeded(seed):
        latents = encode(model, x)
        return decode(model, {name: latents[name].z for name in names[:kept]}, temperature)


def interpolate(
    model: HierarchicalVAE,
    a: Tensor,
    b: Tensor,
    levels: Collection[str],
    steps: int = 10,
    seed: int | None = None,
) -> Observation:
    """Walk in a straight line between the posterior means of two data, at some levels.

    Args:
        model: The model.
        a: Where the walk begins, `[*shape]`.
        b: Where it ends, `[*shape]`.
        levels: Names of the layers that walk; the others are the means of their priors, given
            what is above.
        steps: Number of points, both ends included.
        seed: Seed of the draws that posteriors condition on.

    Returns:
        p(x|z), `[steps, *shape]`.

    Raises:
        UserError: If a level is not a layer's name.
    """
    levels = [levels] if isinstance(levels, str) else levels
    _known(model, levels)
    with seeded(seed):
        means = posterior_means(encode(model, torch.stack([a, b])))
        share = torch.linspace(0.0, 1.0, steps, device=a.device)
        walk = {}
        for name in levels:
            start, end = means[name]
            walk[name] = torch.stack([torch.lerp(start, end, s) for s in share])
        return decode(model, walk, temperature=0.0)


def _known(model: HierarchicalVAE, names: Collection[str]) -> None:
    layers = layer_names(model)
    for name in names:
        if name not in layers:
            raise UserError(f"no layer '{name}'{suggest(name, layers)}")
