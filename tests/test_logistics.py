"""Discretised logistics: masses of all levels, published rules, golden numbers, samples, means."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from ladder.likelihoods import LogisticHead, LogisticMixtureHead
from ladder.logistics import RULES, Bins, DiscretizedLogistic, expected

float64 = torch.float64


def data(bins: Bins) -> Tensor:
    """One datum in [0, 1] for every level."""
    return bins.datum(torch.arange(bins.last + 1, dtype=float64))


def grid(bins: Bins, least: float = -7.0, most: float = 8.0) -> DiscretizedLogistic:
    """Logistics of many means and log-scales, `[31, 41]`."""
    mean = torch.cat((torch.linspace(-1.3, 1.3, 27), torch.tensor([-50.0, -3, 3, 50]))).double()
    mean, log_scale = torch.meshgrid(mean, torch.linspace(least, most, 41).double(), indexing="ij")
    return DiscretizedLogistic(mean, log_scale, bins)


def mass(bins: Bins, least: float = -7.0, most: float = 8.0) -> Tensor:
    return grid(bins, least, most).log_prob(data(bins).view(-1, 1, 1)).exp().sum(0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_level_is_what_remains_of_eight_bits(bits: int) -> None:
    bytes_ = torch.arange(256)
    for dtype in (torch.float32, float64):
        level = Bins(bits).level(bytes_.to(dtype) / 255)
        assert torch.equal(level.long(), bytes_ >> (8 - bits))
        assert level.max() == Bins(bits).last


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_data_of_levels_have_those_levels(bits: int, rule: str) -> None:
    bins = Bins(bits, rule)
    x, levels = data(bins), torch.arange(bins.last + 1, dtype=float64)
    assert x.min() == 0
    assert x.max() <= 1
    for dtype in (torch.float32, float64):
        assert torch.equal(bins.level(x.to(dtype)), levels.to(dtype))
    assert torch.equal(bins.nearest(2 * x - 1), levels)
    torch.testing.assert_close(bins.rescaled(levels), 2 * x - 1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_exact_masses_sum_to_one(bits: int) -> None:
    torch.testing.assert_close(mass(Bins(bits), -7, 30), torch.ones(31, 41, dtype=float64))


@pytest.mark.parametrize("bits", [8, 5, 2])
def test_exact_masses_are_differences_of_the_cdf(bits: int) -> None:
    bins, scale = Bins(bits), 0.07
    px = DiscretizedLogistic(
        torch.tensor(0.2, dtype=float64), torch.tensor(scale, dtype=float64).log(), bins
    )
    edges = -1 + bins.step * (torch.arange(bins.last, dtype=float64) + 0.5)
    cdf = torch.sigmoid((edges - 0.2) / scale)
    cdf = torch.cat((torch.zeros(1, dtype=float64), cdf, torch.ones(1, dtype=float64)))
    torch.testing.assert_close(px.log_prob(data(bins)).exp(), cdf.diff(), rtol=1e-9, atol=1e-15)


def test_exact_masses_keep_their_digits_in_the_tail() -> None:
    """Far above the mean, log of the mass is (m - y + h) / s + log(1 - exp(-2 h / s)).

    With h = 1/255 and s = exp(-7): the published arithmetic has 2.15 nats less there.
    """
    y, scale, half = torch.tensor(0.2, dtype=float64), math.exp(-7), 1 / 255
    level = Bins().nearest(y)
    exact, published = (
        Bins(8, rule).log_mass(level, torch.tensor(-3.0, dtype=float64), torch.tensor(-7.0))
        for rule in ("exact", "pixelcnn")
    )
    distance = Bins().rescaled(level) + 3 - half
    closed = -distance / scale + math.log1p(-math.exp(-2 * half / scale))
    torch.testing.assert_close(exact, closed)
    lost = half / scale + math.log1p(-math.exp(-2 * half / scale)) - math.log(2 * half / scale)
    assert lost == pytest.approx(2.15, abs=0.01)
    assert (exact - published).item() == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize("bits", [8, 5])
def test_pixelcnn_is_exact_where_masses_are_not_small(bits: int) -> None:
    x = data(Bins(bits)).view(-1, 1, 1)
    exact, published = (grid(Bins(bits, r)).log_prob(x) for r in ("exact", "pixelcnn"))
    large = exact > math.log(1.1e-5)
    torch.testing.assert_close(published[large], exact[large], rtol=1e-8, atol=1e-8)
    assert (mass(Bins(bits, "pixelcnn")) - 1).abs().max() < 2e-3


def test_five_bit_bins_of_vdvae_overlap() -> None:
    """Bins 2/31 wide stand 16/255 apart: all within, the mass is 255 / (8 x 31) = 1.0282."""
    total = mass(Bins(5, "vdvae"), -3.5, 8.0)
    assert 1.028 < total.max() < 1.0285
    inside = DiscretizedLogistic(*torch.tensor([-0.03, -2.9], dtype=float64), Bins(5, "vdvae"))
    total = inside.log_prob(data(inside.bins)).exp().sum()
    assert total.item() == pytest.approx(255 / 248, abs=1e-5)


def test_five_bit_vdvae_loses_what_lies_above_its_last_bin() -> None:
    """The last level is 248 x 2 / 255 - 1 = 0.945, and its bin ends 1/31 above it."""
    bins = Bins(5, "vdvae")
    end = torch.tensor(248 * 2 / 255 - 1 + 1 / 31, dtype=float64)
    at_the_end = DiscretizedLogistic(end, torch.tensor(-6.0, dtype=float64), bins)
    assert at_the_end.log_prob(data(bins)).exp().sum().item() == pytest.approx(0.5, abs=1e-3)
    assert mass(bins)[-1].max() < 0.51  # a mean of 50


def test_nvae_counts_the_last_level_twice_at_eight_bits_only() -> None:
    total, (px, x) = mass(Bins(8, "nvae")), (grid(Bins(8)), data(Bins(8)))
    last = px.log_prob(x[-1].expand(31, 41)).exp()
    torch.testing.assert_close(total, 1 + last, rtol=0, atol=2e-3)
    assert (mass(Bins(5, "nvae")) - 1).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("bits", "rule", "nats"),
    [(8, "vdvae", 7.373032), (8, "pixelcnn", 7.373032), (5, "vdvae", 5.263771)],
)
def test_golden_mixture_of_vdvae(bits: int, rule: str, nats: float) -> None:
    """Channels-last logits 2 sin(0.9 i) of a 2 x 2 image, nats per dimension, in float32."""
    raw = 2 * torch.sin(0.9 * torch.arange(80.0, dtype=float64)).view(1, 2, 2, 20).movedim(-1, 1)
    bytes_ = torch.tensor([0, 255, 128, 7, 250, 99, 31, 64, 200, 1, 254, 77])
    x = bytes_.view(1, 2, 2, 3).movedim(-1, 1) / 255
    head = LogisticMixtureHead(2, bits, rule)  # type: ignore[arg-type]
    found = -head(raw.float()).log_prob(x).sum().item() / 12
    assert found == pytest.approx(nats, abs=5e-6)
    if bits == 8:  # the exact masses are near: here all bins are narrow for their scales
        exact = -LogisticMixtureHead(2)(raw).log_prob(x).sum().item() / 12
        assert exact == pytest.approx(nats, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 5])
def test_mixtures_of_any_channels_sum_to_one(channels: int, bits: int) -> None:
    head = LogisticMixtureHead(3, bits)
    raw = 3 * torch.randn(1, head.raw_channels(channels), 7, dtype=float64)
    levels = data(head.bins)
    x = levels.view(-1, 1, 1).expand(-1, channels, 7)
    total = head(raw.expand(len(levels), -1, -1)).log_prob(x).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(channels, 7, dtype=float64))


def test_all_64_colours_of_two_bits_sum_to_one() -> None:
    head = LogisticMixtureHead(4, 2)
    raw = 2 * torch.randn(1, head.raw_channels(3), 5, 3, dtype=float64)
    colours = torch.tensor(list(product(data(head.bins).tolist(), repeat=3)), dtype=float64)
    x = colours.view(64, 3, 1, 1).expand(-1, -1, 5, 3)
    log_prob = head(raw.expand(64, -1, -1, -1)).log_prob(x)
    assert log_prob.shape == (64, 1, 5, 3)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(1, 5, 3, dtype=float64))


def test_the_layout_of_colour_parameters_is_the_documented_one() -> None:
    """Parameter p of component k of colour c is channel K + 3 K c + K p + k."""
    k, raw = 2, torch.randn(1, 20, 4, dtype=float64)
    px = LogisticMixtureHead(k)(raw)
    for c, i in product(range(3), range(k)):
        first = k + 3 * k * c + i
        assert torch.equal(px.location[:, c, i], raw[:, first])
        assert torch.equal(px.log_scale[:, c, i], raw[:, first + k])
        assert torch.equal(px.coefficients[:, c, i], raw[:, first + 2 * k].tanh())
    assert torch.equal(px.logits[:, 0], raw[:, :k])


def test_colours_condition_on_the_colours_before() -> None:
    """One component: log p is that of three logistics with shifted means."""
    px = LogisticMixtureHead(1)(torch.randn(2, 10, 6, dtype=float64))
    x = torch.randint(0, 256, (2, 3, 6)) / 255.0
    y = 2 * x.double() - 1
    (m0, m1, m2), (c0, c1, c2) = px.location[:, :, 0].unbind(1), px.coefficients[:, :, 0].unbind(1)
    means = torch.stack((m0, m1 + c0 * y[:, 0], m2 + c1 * y[:, 0] + c2 * y[:, 1]), 1)
    alone = DiscretizedLogistic(means, px.log_scale[:, :, 0]).log_prob(x)
    torch.testing.assert_close(px.log_prob(x)[:, 0], alone.sum(1), rtol=1e-5, atol=1e-5)


def test_a_mixture_is_the_difference_of_its_cdf() -> None:
    head = LogisticMixtureHead(3, 5)
    raw = torch.randn(1, 9, 1, dtype=float64)
    bins = head.bins
    edges = -1 + bins.step * (torch.arange(bins.last, dtype=float64) + 0.5)
    weights, mean, scale = raw[0, :3, 0].softmax(0), raw[0, 3:6, 0], raw[0, 6:, 0].exp()
    cdf = (torch.sigmoid((edges[:, None] - mean) / scale) * weights).sum(1)
    ends = torch.tensor([0.0, 1.0], dtype=float64)
    masses = torch.cat((ends[:1], cdf, ends[1:])).diff()
    x = data(bins).view(-1, 1, 1)
    torch.testing.assert_close(
        head(raw.expand(32, -1, -1)).log_prob(x).exp().flatten(), masses, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_the_mean_is_right_to_half_a_level(bits: int) -> None:
    bins = Bins(bits)
    px, x = grid(bins, -7, 12), data(bins).view(-1, 1, 1)
    truth = (px.log_prob(x).exp() * x).sum(0)
    assert (px.mean - truth).abs().max() <= bins.half / 2 + 1e-9
    smooth = px.log_scale.exp() > bins.step  # wider than a bin: far better
    assert (px.mean - truth)[smooth].abs().max() < bins.half / 20


def test_the_clipped_mean_keeps_its_digits() -> None:
    mean = torch.tensor([-1e6, -2.0, -0.4, 0.0, 0.7, 1e6])
    for log_scale in (-7.0, -3.0, 0.0, 5.0, 30.0):
        single = expected(mean, torch.full_like(mean, log_scale))
        double = expected(mean.double(), torch.full_like(mean, log_scale).double())
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-6)
        assert (single.abs() <= 1).all()


def test_the_mean_of_colours_is_that_of_their_samples_where_nothing_is_clipped() -> None:
    k, n = 2, 40_000
    raw = torch.cat((torch.randn(k), 0.1 * torch.randn(9 * k))).double()
    raw[[k + 3 * k * c + k + i for c in range(3) for i in range(k)]] = -4.0
    px = LogisticMixtureHead(k)(raw.view(1, -1, 1).expand(n, -1, 1))
    x = px.sample()
    error = x.std(0) / math.sqrt(n)
    assert ((x.mean(0) - px.mean[0]).abs() < 5 * error + 1e-4).all()


def chi_square(observed: Tensor, probability: Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom, with rare cells put together."""
    expected_ = probability * observed.sum()
    rare = expected_ < 8
    cells = [
        torch.cat((part[~rare], part[rare].sum().view(1))).double()
        for part in (observed, expected_)
    ]
    keep = cells[1] > 0.5
    statistic = ((cells[0] - cells[1]).square() / cells[1])[keep].sum().item()
    return statistic, int(keep.sum()) - 1


@pytest.mark.parametrize(
    ("head", "channels"),
    [
        (LogisticHead(8), 1),
        (LogisticHead(5), 2),
        (LogisticHead(3, "learned"), 1),
        (LogisticMixtureHead(3, 8), 1),
        (LogisticMixtureHead(3, 5), 2),
        (LogisticMixtureHead(3, 2), 3),
        (LogisticMixtureHead(2, 3), 3),
    ],
)
def test_samples_match_log_prob(head: LogisticHead | LogisticMixtureHead, channels: int) -> None:
    n, bins = 60_000, head.bins
    raw = torch.randn(1, head.raw_channels(channels))
    with torch.no_grad():
        x = head(raw.expand(n, -1)).sample()
        every = torch.tensor(list(product(range(bins.last + 1), repeat=channels)))
        log_p = head(raw.expand(len(every), -1)).log_prob(every / bins.last).sum(1)
    level = bins.level(x).long()
    assert torch.equal(level / bins.last, x)
    index = (level * (bins.last + 1) ** torch.arange(channels).flip(0)).sum(1)
    torch.testing.assert_close(log_p.exp().sum().item(), 1.0)
    statistic, freedom = chi_square(torch.bincount(index, minlength=len(every)), log_p.exp())
    assert freedom > 2
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_samples_of_a_floored_rule_are_lowest_values() -> None:
    x = LogisticHead(5, bins="vdvae")(torch.randn(4, 2, 50)).sample()
    torch.testing.assert_close(x, (255 * x).round().div(8).floor() * 8 / 255)
