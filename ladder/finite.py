"""Whether what a model generates is finite: a picture hides a NaN, so somebody has to look."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ladder.errors import WorkFailed
from ladder.latent import Latent
from ladder.likelihoods import Observation


def finite(where: str, px: Observation, latents: Mapping[str, Latent]) -> Observation:
    """Return p(x|z) as it is, if all its parameters are finite.

    Args:
        where: What generated it, for the sentence.
        px: p(x|z) of B data.
        latents: Their latents by name, top first.

    Returns:
        `px`.

    Raises:
        WorkFailed: If a datum is not finite; names the first layer that is not.
    """
    n = len(next(iter(latents.values())).z)
    leaves = [leaf for leaf in tree_leaves(px) if isinstance(leaf, Tensor) and leaf.ndim]
    # A value of somebody's own kind may not show what it is made of.
    parameters = [leaf for leaf in leaves if len(leaf) == n] or [px.mean]
    if parameters[0].is_meta:
        return px
    sound = torch.stack([_sound(values) for values in parameters]).all(dim=0)
    if bool(sound.all()):
        return px
    names = [name for name, v in latents.items() if not bool(_sound(v.z).all())]
    first = f"layer {names[0]}" if names else "the likelihood"
    raise WorkFailed(
        f"{where}: {int((~sound).sum())} of {len(sound)} data are not finite, the first to go was "
        f"{first}; with batch norm, statistics that do not fit the temperature can be why: see "
        "recalibrate"
    )


def _sound(values: Tensor) -> Tensor:
    """Which data are finite, `[B]`."""
    return values.flatten(1).isfinite().all(dim=1)
