"""How a layer's posterior is made from its state, its evidence and its prior.

A merge is a module `(h, evidence, p) -> posterior`. What the evidence is depends on the merge: a
Gaussian (`Direct`, `PrecisionWeighted`), features `[B, C, ...]` of h's resolution (`Concat`,
`ResidualNormal`), or one of these beside a draw made going up (`Bidirectional`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ladder.distributions import Drawn, Joined, Normal, Posterior


class Direct(nn.Module):
    """The evidence is the posterior already: q(z_l | x) or a draw made on the way up."""

    def forward(self, h: Any, evidence: Posterior, p: Normal) -> Posterior:
        """Return the evidence."""
        return evidence


class PrecisionWeighted(nn.Module):
    """The normalised product of evidence and prior (Sønderby et al. 2016, section 2.2).

    1/s^2 = 1/s_e^2 + 1/s_p^2 and m = (m_e/s_e^2 + m_p/s_p^2) s^2, from the logs of the scales, so
    that no precision overflows.
    """

    def forward(self, h: Any, evidence: Normal, p: Normal) -> Normal:
        """Multiply the two densities."""
        log_precisions = -2.0 * evidence.log_scale, -2.0 * p.log_scale
        share = torch.sigmoid(log_precisions[0] - log_precisions[1])
        mean = p.mean + share * (evidence.mean - p.mean)
        return Normal(mean, -0.5 * torch.logaddexp(*log_precisions))


class Concat(nn.Module):
    """A network on features from above and below side by side.

    Args:
        net: `[B, C_h + C_d, ...] -> Normal`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor, evidence: Tensor, p: Normal) -> Normal:
        """Return the posterior that the network emits."""
        q: Normal = self.net(torch.cat([h, evidence], dim=1))
        return q


class ResidualNormal(nn.Module):
    """The posterior relative to the prior: mean m_p + dm, scale s_p ds.

    The residual normal of NVAE (Vahdat & Kautz 2020, section 3.2). With dm and ds at 0 and 1 the
    KL is 0, and a moving prior carries its posterior along.

    Args:
        net: `[B, C_h + C_d, ...] -> Normal`, read as dm and log ds.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, h: Tensor, evidence: Tensor, p: Normal) -> Normal:
        """Return the shifted and rescaled prior."""
        change: Normal = self.net(torch.cat([h, evidence], dim=1))
        return Normal(p.mean + change.mean, p.log_scale + change.log_scale)


class BothWays(NamedTuple):
    """Evidence of a layer that is drawn in both directions.

    Attributes:
        up: Evidence for the part drawn going down: a Gaussian or features, as its merge needs.
        drawn: Posterior of the part that was drawn going up.
    """

    up: Normal | Tensor
    drawn: Drawn


class Bidirectional(nn.Module):
    """One part of z_l from a merge, the other as it was drawn going up.

    Args:
        td: Merge of the part drawn going down.
    """

    def __init__(self, td: nn.Module) -> None:
        super().__init__()
        self.td = td

    def forward(self, h: Any, evidence: BothWays, p: Normal) -> Joined:
        """Return the joint posterior of [z^TD, z^BU]."""
        n = p.mean.shape[1] - evidence.drawn.mean.shape[1]
        td = self.td(h, evidence.up, Normal(p.mean[:, :n], p.log_scale[:, :n]))
        return Joined(td, evidence.drawn)
