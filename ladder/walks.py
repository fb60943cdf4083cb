"""Points between two latents: along the straight line, or along an arc."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST_RADIANS = 1e-4  # between directions that are told apart on an arc


def line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points of the straight line, `[steps, *latent]`."""
    share = torch.linspace(0.0, 1.0, steps, device=start.device)
    return torch.stack([torch.lerp(start, end, s) for s in share])


def arc(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points of the arc; of the line where the ends have no angle between them, or half a turn."""
    cosine = torch.cosine_similarity(start.flatten(), end.flatten(), dim=0).clamp(-1.0, 1.0)
    angle = cosine.acos()
    straight = line(start, end, steps)
    if angle.sin() < FEWEST_RADIANS:
        return straight
    share = torch.linspace(0.0, 1.0, steps).to(start).view(-1, *[1] * start.ndim)
    return (((1.0 - share) * angle).sin() * start + (share * angle).sin() * end) / angle.sin()
