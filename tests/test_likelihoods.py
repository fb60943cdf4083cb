from __future__ import annotations

import math

import pytest
import torch

from ladder.distributions import Normal
from ladder.likelihoods import LIKELIHOODS, Bernoulli, BernoulliHead, Gaussian, GaussianHead


def test_bernoulli_sums_to_one() -> None:
    px = Bernoulli(torch.linspace(-30, 30, 61, dtype=torch.float64))
    total = sum(px.log_prob(torch.full((61,), x, dtype=torch.float64)).exp() for x in (0.0, 1.0))
    torch.testing.assert_close(total, torch.ones(61, dtype=torch.float64))


def test_bernoulli_is_torchs_and_finite_where_torchs_is_not() -> None:
    logits = torch.randn(50, dtype=torch.float64)
    x = torch.rand(50, dtype=torch.float64)
    mean = logits.sigmoid()
    expected = x * mean.log() + (1 - x) * (1 - mean).log()
    torch.testing.assert_close(Bernoulli(logits).log_prob(x), expected)
    torch.testing.assert_close(Bernoulli(logits).mean, mean)
    extreme = Bernoulli(torch.tensor([-1000.0, 1000.0]))
    assert extreme.log_prob(torch.tensor([1.0, 0.0])).tolist() == [-1000.0, -1000.0]


def test_bernoulli_samples_match_log_prob() -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0]).expand(40_000, 4)
    px = Bernoulli(logits)
    x = px.sample()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = px.log_prob(torch.ones_like(x)).exp()[0]
    error = (p * (1 - p) / len(x)).sqrt()
    assert ((x.mean(0) - p).abs() < 5 * error).all()


def test_gaussian_integrates_to_one() -> None:
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    for mean, log_scale in ((0.3, 0.0), (-1.0, -1.5), (2.0, 0.7)):
        value = torch.tensor([mean, log_scale], dtype=torch.float64)
        px = Gaussian(Normal(value[0].expand_as(grid), value[1].expand_as(grid)))
        area = torch.trapezoid(px.log_prob(grid).exp(), grid)
        torch.testing.assert_close(area, torch.ones((), dtype=torch.float64))


def test_gaussian_samples_match_log_prob() -> None:
    """The mean of log p over its own samples is minus the entropy."""
    head = GaussianHead()
    with torch.no_grad():
        head.log_scale.fill_(-0.4)
    px = head(torch.randn(1, 1, 200, 200))
    x = px.sample()
    entropy = 0.5 * math.log(2 * math.pi * math.e) - 0.4
    assert px.log_prob(x).mean().item() == pytest.approx(-entropy, abs=5 * math.sqrt(0.5 / 40_000))
    assert (x - px.mean).std().item() == pytest.approx(math.exp(-0.4), rel=0.03)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_heads_are_float32_or_better(name: str) -> None:
    head = LIKELIHOODS[name]()
    low = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    assert head(low).mean.dtype == torch.float32
    assert head(low.double()).mean.dtype == torch.float64
    assert head(low).mean.shape == (2, head.raw_channels(3), 4, 4)


def test_the_learned_scale_gets_a_gradient() -> None:
    head = GaussianHead()
    head(torch.zeros(2, 1, 3, 3)).log_prob(torch.ones(2, 1, 3, 3)).sum().backward()
    assert head.log_scale.grad is not None
    # d/ds of -r^2 exp(-2s)/2 - s at r = 1, s = 0 is r^2 - 1 = 0; at r = 2 it is 3 a pixel
    head.zero_grad()
    head(torch.zeros(1, 1, 1, 1)).log_prob(torch.full((1, 1, 1, 1), 2.0)).sum().backward()
    assert head.log_scale.grad.item() == pytest.approx(3.0)


def test_bernoulli_head_takes_logits() -> None:
    logits = torch.randn(2, 1, 3, 3)
    assert torch.equal(BernoulliHead()(logits).logits, logits)
