"""Gaussians against torch.distributions, and the two estimators of a posterior already drawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils import _pytree as pytree

from ladder.distributions import ClosedDrawn, Drawn, Normal
from ladder.latent import Latent


def normals(n: int = 200, spread: float = 2.0) -> Normal:
    mean, log_scale = spread * torch.randn(2, n, dtype=torch.float64)
    return Normal(mean, log_scale)


def torch_normal(normal: Normal) -> torch.distributions.Normal:
    return torch.distributions.Normal(normal.mean, normal.log_scale.exp())


def test_log_prob_is_that_of_torch() -> None:
    q, z = normals(), 3.0 * torch.randn(200, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), torch_normal(q).log_prob(z), rtol=1e-12, atol=1e-12)


def test_density_integrates_to_one() -> None:
    q = Normal(torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64))
    z = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
    assert torch.trapezoid(q.log_prob(z).exp(), z).item() == pytest.approx(1.0, abs=1e-12)


def test_kl_is_that_of_torch() -> None:
    q, p = normals(), normals()
    expected = torch.distributions.kl_divergence(torch_normal(q), torch_normal(p))
    torch.testing.assert_close(q.kl(p, q.mean), expected, rtol=1e-11, atol=1e-12)


def test_kl_does_not_depend_on_the_draw() -> None:
    q, p = normals(), normals()
    assert torch.equal(q.kl(p, q.mean), q.kl(p, q.mean + 1.0))


def test_kl_of_a_normal_to_itself_is_zero_and_flat() -> None:
    q = Normal(*(v.clone().requires_grad_() for v in normals()))
    p = Normal(q.mean.detach(), q.log_scale.detach())
    kl = q.kl(p, q.mean)
    assert torch.equal(kl, torch.zeros_like(kl))
    for gradient in torch.autograd.grad(kl.sum(), list(q)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_kl_is_finite_and_positive_at_extreme_scales() -> None:
    q, p = normals(spread=12.0), normals(spread=12.0)
    kl = q.kl(p, q.mean)
    assert kl.isfinite().all()
    assert (kl >= 0.0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_rsample_scales_the_noise(
    feed: Callable[[list[Tensor]], None], temperature: float, as_tensor: bool
) -> None:
    q, noise = normals(), torch.randn(200, dtype=torch.float64)
    feed([noise])
    z = q.rsample(torch.tensor(temperature) if as_tensor else temperature)
    torch.testing.assert_close(z, q.mean + temperature * q.log_scale.exp() * noise)


def test_temperature_zero_gives_the_mean_exactly() -> None:
    q = normals()
    assert torch.equal(q.rsample(0.0), q.mean)


def test_rsample_has_the_right_moments() -> None:
    n = 200_000
    mean, log_scale = torch.tensor([1.5, -0.7], dtype=torch.float64)
    z = Normal(mean.expand(n), log_scale.expand(n)).rsample(0.5)
    scale = 0.5 * log_scale.exp()
    assert (z.mean() - mean).abs() < 5 * scale / n**0.5
    assert (z.std() / scale - 1).abs() < 5 / (2 * n) ** 0.5


def test_rsample_draws_once() -> None:
    q = normals(7)
    torch.manual_seed(3)
    q.rsample()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    torch.randn_like(q.mean)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("drawn", [Drawn, ClosedDrawn])
def test_a_drawn_posterior_is_its_normal_and_its_draw(drawn: type[Drawn]) -> None:
    normal, z = normals(), torch.randn(200, dtype=torch.float64)
    q = drawn(normal, z)
    state = torch.get_rng_state()
    assert q.rsample() is z
    assert q.rsample(0.0) is z
    assert torch.equal(state, torch.get_rng_state())
    assert q.mean is normal.mean
    assert q.log_scale is normal.log_scale
    other = torch.randn(200, dtype=torch.float64)
    assert torch.equal(q.log_prob(other), normal.log_prob(other))


def test_drawn_has_the_sampled_kl_and_closed_drawn_the_closed_one() -> None:
    normal, p = normals(), normals()
    z = normal.rsample()
    ratio = torch_normal(normal).log_prob(z) - torch_normal(p).log_prob(z)
    torch.testing.assert_close(Drawn(normal, z).kl(p, z), ratio)
    assert torch.equal(ClosedDrawn(normal, z).kl(p, z), normal.kl(p, z))


def test_sampled_kl_has_the_closed_one_as_its_mean_exactly() -> None:
    # log q - log p is quadratic in the noise, so its mean is that over the noise -1 and +1.
    q, p = normals(), normals()
    draws = [q.mean - q.log_scale.exp(), q.mean + q.log_scale.exp()]
    mean = sum(Drawn(q, z).kl(p, z) for z in draws) / 2
    torch.testing.assert_close(mean, q.kl(p, q.mean), rtol=1e-10, atol=1e-10)


def test_sampled_kl_averages_to_the_closed_one() -> None:
    n = 100_000
    q = Normal(*torch.tensor([[0.4], [-0.6]], dtype=torch.float64).expand(2, n))
    p = Normal(*torch.tensor([[-0.2], [0.3]], dtype=torch.float64).expand(2, n))
    z = q.rsample()
    kl = Drawn(q, z).kl(p, z)
    assert (kl.mean() - q.kl(p, z)[0]).abs() < 5 * kl.std() / n**0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda q, z: q,
        lambda q, z: Drawn(q, z),
        lambda q, z: ClosedDrawn(q, z),
        lambda q, z: Latent(z, q, ClosedDrawn(q, z), z),
        lambda q, z: {"z1": Latent(z, q, Drawn(q, z), z)},
    ],
)
def test_values_pass_through_a_pytree(make: Callable[[Normal, Tensor], object]) -> None:
    value = make(normals(3), torch.randn(3))
    leaves, spec = pytree.tree_flatten(value)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)
    assert types(again) == types(value)


def types(value: object) -> object:
    if isinstance(value, dict):
        return {key: types(inner) for key, inner in value.items()}
    inner = [types(v) for v in value] if isinstance(value, tuple) else []
    return (type(value), inner)


def test_gradients_are_right() -> None:
    arguments = [v.requires_grad_() for v in torch.randn(5, 4, dtype=torch.float64)]

    def log_prob(mean: Tensor, log_scale: Tensor, z: Tensor) -> Tensor:
        return Normal(mean, log_scale).log_prob(z)

    def kl(mean: Tensor, log_scale: Tensor, p_mean: Tensor, p_log_scale: Tensor) -> Tensor:
        return Normal(mean, log_scale).kl(Normal(p_mean, p_log_scale), mean)

    assert gradcheck(log_prob, arguments[:3])
    assert gradcheck(kl, arguments[:4])


def test_draws_are_reparametrised() -> None:
    q = Normal(*(v.clone().requires_grad_() for v in normals(9)))
    z = q.rsample(0.5)
    to_mean, to_log_scale = torch.autograd.grad(z.sum(), list(q))
    assert torch.equal(to_mean, torch.ones_like(to_mean))
    torch.testing.assert_close(to_log_scale, (z - q.mean).detach())


def test_the_sampled_kl_is_differentiated_through_the_draw() -> None:
    p = Normal(*torch.randn(2, 4, dtype=torch.float64))
    noise = torch.randn(4, dtype=torch.float64)

    def kl(mean: Tensor, log_scale: Tensor) -> Tensor:
        z = mean + log_scale.exp() * noise
        return Drawn(Normal(mean, log_scale), z).kl(p, z)

    assert gradcheck(kl, [v.requires_grad_() for v in torch.randn(2, 4, dtype=torch.float64)])
