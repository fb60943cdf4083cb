"""How a layer's posterior is made from its state, its evidence and its prior.

A merge is a module `(h, evidence, p) -> posterior`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ladder.distributions import Normal, Posterior


class Direct(nn.Module):
    """The evidence is the posterior already: q(z_l | x) or a draw made on the way up."""

    def forward(self, h: Any, evidence: Posterior, p: Normal) -> Posterior:
        """Return the evidence."""
        return evidence
