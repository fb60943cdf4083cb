"""The one rule by which z is chosen: as given, else from the posterior, else from the prior."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ladder.distributions import ClosedDrawn, Drawn, Joined, Normal, Sampled
from ladder.latent import Latent, draw, join, variables


def normal() -> Normal:
    return Normal(*torch.randn(2, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("with_posterior", [False, True])
def test_a_given_z_is_taken_as_it_is(with_posterior: bool) -> None:
    p, q, z = normal(), normal() if with_posterior else None, torch.randn(4, 3)
    state = torch.get_rng_state()
    latent = draw(p, q, z, temperature=0.5)
    assert latent.z is z
    assert latent == Latent(z, p, None, None)
    assert torch.equal(state, torch.get_rng_state())


def test_without_z_the_posterior_is_drawn_from(feed: Callable[[list[Tensor]], None]) -> None:
    p, q, noise = normal(), normal(), torch.randn(4, 3, dtype=torch.float64)
    feed([noise])
    latent = draw(p, q)
    assert latent.p is p
    assert latent.q is q
    torch.testing.assert_close(latent.z, q.mean + q.log_scale.exp() * noise)
    assert latent.kl is not None
    assert torch.equal(latent.kl, q.kl(p, latent.z))


def test_temperature_leaves_the_posterior_alone() -> None:
    p, q = normal(), normal()
    torch.manual_seed(1)
    warm = draw(p, q)
    torch.manual_seed(1)
    cold = draw(p, q, temperature=0.0)
    assert torch.equal(warm.z, cold.z)
    assert not torch.equal(cold.z, q.mean)


def test_without_both_the_prior_is_drawn_from(feed: Callable[[list[Tensor]], None]) -> None:
    p, noise = normal(), torch.randn(4, 3, dtype=torch.float64)
    feed([noise])
    latent = draw(p, temperature=0.5)
    torch.testing.assert_close(latent.z, p.mean + 0.5 * p.log_scale.exp() * noise)
    assert latent.p is p
    assert latent.q is None
    assert latent.kl is None


def test_a_prior_at_temperature_zero_gives_its_mean() -> None:
    p = normal()
    assert torch.equal(draw(p, temperature=0.0).z, p.mean)


@pytest.mark.parametrize("drawn", [Drawn, ClosedDrawn])
def test_a_draw_made_on_the_way_up_is_kept(drawn: type[Drawn]) -> None:
    p, z = normal(), torch.randn(4, 3, dtype=torch.float64)
    q = drawn(normal(), z)
    state = torch.get_rng_state()
    latent = draw(p, q, temperature=0.0)
    assert latent.z is z
    assert latent.q is q
    assert latent.kl is not None
    assert torch.equal(latent.kl, q.kl(p, z))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", [Normal, Sampled])
def test_two_variables_become_one_latent(kind: type[Normal]) -> None:
    p_td, p_bu, z = normal(), normal(), torch.randn(4, 3, dtype=torch.float64)
    td = draw(p_td, kind(*normal()))
    bu = draw(p_bu, Drawn(normal(), z))
    both = join(td, bu)
    assert isinstance(both.q, Joined)
    assert torch.equal(both.z, torch.cat([td.z, z], dim=1))
    assert torch.equal(both.q.mean, torch.cat([td.q.mean, bu.q.mean], dim=1))
    # The joint posterior says the same of the joint draw as its parts said of theirs.
    assert torch.equal(both.q.kl(both.p, both.z), both.kl)
    expected = torch.cat([p_td.log_prob(td.z), p_bu.log_prob(bu.z)], dim=1)
    assert torch.equal(both.p.log_prob(both.z), expected)
    for part, one in zip(variables(both.q, both.kl), (td.kl, bu.kl), strict=True):
        assert torch.equal(part, one)


def test_what_came_from_priors_joins_without_a_posterior() -> None:
    td, bu = draw(normal()), draw(normal())
    both = join(td, bu)
    assert both.q is None
    assert both.kl is None
    assert variables(both.q, both.z) == (both.z,)
