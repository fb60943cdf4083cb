"""Whether what a model generates is finite: a picture hides a NaN, so somebody has to look."""

from __future__ import annotations

from collections.abc import Mapping

from ladder.errors import WorkFailed
from ladder.latent import Latent
from ladder.likelihoods import Observation


def finite(where: str, px: Observation, latents: Mapping[str, Latent]) -> Observation:
    """Return p(x|z) as it is, if its mean is finite.

    Args:
        where: What generated it, for the sentence.
        px: p(x|z) of B data.
        latents: Their latents by name, top first.

    Returns:
        `px`.

    Raises:
        WorkFailed: If a datum is not finite; names the first layer that is not.
    """
    mean = px.mean
    if mean.is_meta or bool(mean.isfinite().all()):
        return px
    wrong = int((~mean.flatten(1).isfinite().all(1)).sum())
    names = [name for name, v in latents.items() if not bool(v.z.isfinite().all())]
    first = f"layer {names[0]}" if names else "the likelihood"
    raise WorkFailed(
        f"{where}: {wrong} of {len(mean)} data are not finite, the first to go was {first}; with "
        "batch norm, statistics that do not fit the temperature can be why: see recalibrate"
    )
