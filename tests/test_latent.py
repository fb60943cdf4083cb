"""The one rule by which z is chosen: as given, else from the posterior, else from the prior."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ladder.distributions import ClosedDrawn, Drawn, Normal
from ladder.latent import Latent, draw


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
