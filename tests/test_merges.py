"""Merges against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ladder.distributions import Drawn, Joined, Normal
from ladder.merges import (
    Bidirectional,
    BothWays,
    Concat,
    Direct,
    PrecisionWeighted,
    ResidualNormal,
)


def normal(mean: list[float], scale: list[float]) -> Normal:
    return Normal(
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([scale], dtype=torch.float64).log(),
    )


class Affine(nn.Module):
    """Means and log-scales that a hand can follow: sums of the inputs, and a tenth of them."""

    def forward(self, h: Tensor) -> Normal:
        total = h.sum(dim=1, keepdim=True)
        return Normal(total, 0.1 * total)


@pytest.mark.parametrize("means", [(0.0, 0.0), (1.0, 3.0), (-2.0, 5.0)])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.1, 2.0), (3.0, 0.01)])
def test_precision_weighted_is_the_normalised_product_on_a_grid(
    means: tuple[float, float], scales: tuple[float, float]
) -> None:
    one, two = (normal([m], [s]) for m, s in zip(means, scales, strict=True))
    q = PrecisionWeighted()(None, one, two)
    width = 12.0 * min(scales)
    z = torch.linspace(-width, width, 20_001, dtype=torch.float64)[:, None] + q.mean
    log_product = one.log_prob(z) + two.log_prob(z)
    norm = torch.trapezoid(log_product.exp(), z, dim=0)
    if norm > 1e-300:
        inside = (z - q.mean).abs() < 5.0 * q.log_scale.exp()
        density = (log_product - norm.log())[inside]
        torch.testing.assert_close(density, q.log_prob(z)[inside], rtol=1e-6, atol=1e-6)


def test_precision_weighted_as_published() -> None:
    q = PrecisionWeighted()(None, normal([3.0], [0.5**0.5]), normal([1.0], [2.0**0.5]))
    assert q.mean.item() == pytest.approx(2.6)
    assert q.log_scale.exp().square().item() == pytest.approx(0.4)


def test_precision_weighted_is_finite_for_extreme_scales() -> None:
    log_scale = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    q = PrecisionWeighted()(
        None, Normal(torch.ones(1, 2), log_scale), Normal(*torch.zeros(2, 1, 2))
    )
    assert q.mean.tolist() == [[1.0, 0.0]]
    q.log_scale.sum().backward()
    assert log_scale.grad is not None
    assert log_scale.grad.isfinite().all()


def test_concat_reads_both_sides() -> None:
    h, d = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])
    q = Concat(Affine())(h, d, normal([0.0], [1.0]))
    assert q.mean.item() == 7.0


def test_residual_normal_is_relative_to_the_prior() -> None:
    p = normal([2.0], [3.0])
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    same = ResidualNormal(Affine())(nothing, nothing, p)
    assert torch.equal(same.kl(p, p.mean), torch.zeros(1, 1, dtype=torch.float64))
    moved = ResidualNormal(Affine())(nothing + 1.0, nothing, p)
    assert moved.mean.item() == 3.0
    assert moved.log_scale.exp().item() == pytest.approx(3.0 * torch.tensor(0.1).exp().item())


def test_direct_is_the_evidence() -> None:
    evidence = normal([1.0], [2.0])
    assert Direct()(None, evidence, normal([0.0], [1.0])) is evidence


def test_bidirectional_merges_one_part_and_keeps_the_other() -> None:
    drawn = Drawn(normal([1.0], [0.5]), torch.tensor([[1.25]], dtype=torch.float64))
    p = normal([0.0, 0.5, -1.0], [1.0, 2.0, 3.0])
    up = normal([3.0, -3.0], [1.0, 1.0])
    q = Bidirectional(PrecisionWeighted())(None, BothWays(up, drawn), p)
    assert isinstance(q, Joined)
    td = PrecisionWeighted()(None, up, normal([0.0, 0.5], [1.0, 2.0]))
    torch.testing.assert_close(q.mean, torch.cat([td.mean, drawn.mean], dim=1))
    z = q.rsample()
    assert z[0, 2] == 1.25
    parts = [td.log_prob(z[:, :2]), drawn.log_prob(z[:, 2:])]
    torch.testing.assert_close(q.log_prob(z), torch.cat(parts, dim=1))
    kl = q.kl(p, z)
    torch.testing.assert_close(kl[:, :2], td.kl(normal([0.0, 0.5], [1.0, 2.0]), z[:, :2]))
    ratio = drawn.log_prob(z[:, 2:]) - normal([-1.0], [3.0]).log_prob(z[:, 2:])
    torch.testing.assert_close(kl[:, 2:], ratio)
