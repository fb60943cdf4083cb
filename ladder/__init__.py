"""Deep hierarchical VAEs: declared in YAML, inferred in one word, measured in nats.

The public names are imported when they are first used, so that `ladder --help` need not wait
for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladder.build import build_model as build_model
    from ladder.build import preset_config as preset_config
    from ladder.build import resolve as resolve
    from ladder.calibration import recalibrate as recalibrate
    from ladder.config import Config as Config
    from ladder.data.strange import strange_sets as strange_sets
    from ladder.diagnostics import Units as Units
    from ladder.diagnostics import active_units as active_units
    from ladder.diagnostics import bits_per_dim as bits_per_dim
    from ladder.diagnostics import bits_per_layer as bits_per_layer
    from ladder.diagnostics import kl_profile as kl_profile
    from ladder.diagnostics import unit_profile as unit_profile
    from ladder.distributions import ClosedDrawn as ClosedDrawn
    from ladder.distributions import Drawn as Drawn
    from ladder.distributions import Flowed as Flowed
    from ladder.distributions import Normal as Normal
    from ladder.errors import UserError as UserError
    from ladder.errors import WorkFailed as WorkFailed
    from ladder.execution import compile_layers as compile_layers
    from ladder.execution import set_recompute as set_recompute
    from ladder.latent import Latent as Latent
    from ladder.latent import draw as draw
    from ladder.latent import join as join
    from ladder.latent import variables as variables
    from ladder.layers import StochasticLayer as StochasticLayer
    from ladder.model import HierarchicalVAE as HierarchicalVAE
    from ladder.model import TopDown as TopDown
    from ladder.objectives import Terms as Terms
    from ladder.objectives import elbo as elbo
    from ladder.objectives import iw_elbo as iw_elbo
    from ladder.ood import Detection as Detection
    from ladder.ood import LevelScores as LevelScores
    from ladder.ood import OodTable as OodTable
    from ladder.ood import auroc as auroc
    from ladder.ood import level_bounds as level_bounds
    from ladder.ood import level_scores as level_scores
    from ladder.ood import ood_table as ood_table
    from ladder.presets import list_presets as list_presets
    from ladder.pretrained import from_pretrained as from_pretrained
    from ladder.pretrained import push_to_hub as push_to_hub
    from ladder.pretrained import save_pretrained as save_pretrained
    from ladder.sampler import Sampler as Sampler
    from ladder.sampling import decode as decode
    from ladder.sampling import encode as encode
    from ladder.sampling import interpolate as interpolate
    from ladder.sampling import reconstruct as reconstruct
    from ladder.sampling import sample as sample
    from ladder.sampling import swap as swap
    from ladder.sampling import top_latents as top_latents
    from ladder.sampling import vary as vary
    from ladder.train.doctor import Finding as Finding
    from ladder.train.doctor import diagnose as diagnose
    from ladder.train.evaluate import evaluate as evaluate
    from ladder.train.loop import fit as fit
    from ladder.train.stop import Stopped as Stopped

_HOMES = {
    "ladder.build": ("build_model", "preset_config", "resolve"),
    "ladder.calibration": ("recalibrate",),
    "ladder.config": ("Config",),
    "ladder.data.strange": ("strange_sets",),
    "ladder.diagnostics": (
        "Units",
        "active_units",
        "bits_per_dim",
        "bits_per_layer",
        "kl_profile",
        "unit_profile",
    ),
    "ladder.distributions": ("ClosedDrawn", "Drawn", "Flowed", "Normal"),
    "ladder.errors": ("UserError", "WorkFailed"),
    "ladder.execution": ("compile_layers", "set_recompute"),
    "ladder.latent": ("Latent", "draw", "join", "variables"),
    "ladder.layers": ("StochasticLayer",),
    "ladder.model": ("HierarchicalVAE", "TopDown"),
    "ladder.objectives": ("Terms", "elbo", "iw_elbo"),
    "ladder.ood": (
        "Detection",
        "LevelScores",
        "OodTable",
        "auroc",
        "level_bounds",
        "level_scores",
        "ood_table",
    ),
    "ladder.presets": ("list_presets",),
    "ladder.pretrained": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "ladder.sampler": ("Sampler",),
    "ladder.sampling": (
        "decode",
        "encode",
        "interpolate",
        "reconstruct",
        "sample",
        "swap",
        "top_latents",
        "vary",
    ),
    "ladder.train.doctor": ("Finding", "diagnose"),
    "ladder.train.evaluate": ("evaluate",),
    "ladder.train.loop": ("fit",),
    "ladder.train.stop": ("Stopped",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ladder-vae")
    if name not in _HOME:
        raise AttributeError(f"module 'ladder' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
