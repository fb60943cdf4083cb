"""Linear-Gaussian hierarchies, whose evidence and posterior are known exactly.

z_L ~ N(0, 1), z_l = b_l z_{l+1} + c_l + t_l e, x = w z_1 + d + s e, so (z_L, ..., z_1, x) is one
Gaussian. Every log-ratio here is quadratic in the noise: its mean over N(0, I) is exactly the
mean over all combinations of -1 and +1, so that expectations need no Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from ladder.build import build_model
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, iw_elbo

Feed = Callable[[list[Tensor]], None]
DIM = 3  # of x
DEPTHS = [2, 5]


def linear_hierarchy(depth: int, kl: str = "sampled") -> HierarchicalVAE:
    """Random generative weights; scales that do not depend on the input."""
    model = build_model(
        config={
            "system": "hierarchy",
            "shape": [DIM],
            "kl": kl,
            "likelihood": "gaussian",
            "layers": [{"dim": 1, "repeat": depth}],
        }
    ).double()
    generator = torch.Generator().manual_seed(depth)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.8 * values)
        for net in nets(model):
            net.weight[1] = 0.0
    return model


def nets(model: HierarchicalVAE) -> list[Any]:
    """Every affine map that emits a mean (row 0) and a log-variance (row 1)."""
    rungs = [rung.posterior.net for rung in model.bottom_up.rungs.values()]
    return rungs + prior_nets(model)


def prior_nets(model: HierarchicalVAE) -> list[Any]:
    """From the top down."""
    return [layer.prior.net for layer in list(model.top_down.layers.values())[1:]]


def joint(model: HierarchicalVAE) -> MultivariateNormal:
    """p(z_L, ..., z_1, x), differentiable in the model's weights."""
    priors, likelihood = prior_nets(model), model.likelihood[0]
    depth = len(priors) + 1
    mean = [torch.zeros((), dtype=torch.float64)]
    # Rows of `root` write each variable as a combination of depth + DIM independent noises.
    unit = torch.eye(depth + DIM, dtype=torch.float64)
    root = [unit[0]]
    for i, net in enumerate(priors, start=1):
        mean.append(net.weight[0, 0] * mean[-1] + net.bias[0])
        root.append(net.weight[0, 0] * root[-1] + (0.5 * net.bias[1]).exp() * unit[i])
    scale = model.likelihood[-1].log_scale.exp()
    for j in range(DIM):
        mean.append(likelihood.weight[j, 0] * mean[depth - 1] + likelihood.bias[j])
        root.append(likelihood.weight[j, 0] * root[depth - 1] + scale * unit[depth + j])
    factor = torch.stack(root)
    return MultivariateNormal(torch.stack(mean), factor @ factor.T)


def evidence(model: HierarchicalVAE, x: Tensor) -> Tensor:
    """Exact log p(x), `[B]`."""
    everything = joint(model)
    mean, covariance = everything.mean[-DIM:], everything.covariance_matrix[-DIM:, -DIM:]
    return MultivariateNormal(mean, covariance).log_prob(x)


def conditional(
    p: MultivariateNormal, a: list[int], b: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gain, offset and covariance of p(v_a | v_b)."""
    s = p.covariance_matrix
    gain = torch.linalg.solve(s[b][:, b], s[b][:, a]).T
    return gain, p.mean[a] - gain @ p.mean[b], s[a][:, a] - gain @ s[b][:, a]


def set_posterior(net: Any, gain: Tensor, offset: Tensor, variance: Tensor) -> None:
    """N(gain . first inputs + offset, variance)."""
    net.weight.zero_()
    net.weight[0, : gain.numel()] = gain.flatten()
    net.bias[0], net.bias[1] = offset.squeeze(), variance.squeeze().log()


@torch.no_grad()
def make_exact(model: HierarchicalVAE) -> None:
    """Give the bottom-up pass the true posterior p(z_1|x) p(z_2|z_1) ... of the chain."""
    p, depth = joint(model), len(model.top_down.layers)
    below = list(range(depth, depth + DIM))
    for i, rung in enumerate(model.bottom_up.rungs.values()):
        own = [depth - 1 - i]
        set_posterior(rung.posterior.net, *conditional(p, own, below))
        below = own


def posterior(model: HierarchicalVAE, x: Tensor) -> MultivariateNormal:
    """q(z_L, ..., z_1 | x) of one datum, as one Gaussian."""
    depth = len(model.top_down.layers)
    unit = torch.eye(depth, dtype=torch.float64)
    mean: list[Tensor] = []
    root: list[Tensor] = []
    inputs, roots = x, torch.zeros(DIM, depth, dtype=torch.float64)
    for i, rung in enumerate(model.bottom_up.rungs.values()):
        net = rung.posterior.net
        mean.append(net.weight[0] @ inputs + net.bias[0])
        root.append(net.weight[0] @ roots + (0.5 * net.bias[1]).exp() * unit[i])
        inputs = torch.cat([mean[-1][None], inputs])
        roots = torch.cat([root[-1][None], roots])
    factor = torch.stack(root[::-1])
    return MultivariateNormal(torch.stack(mean[::-1]), factor @ factor.T)


def true_posterior(model: HierarchicalVAE, x: Tensor) -> MultivariateNormal:
    """p(z_L, ..., z_1 | x) of one datum."""
    depth = len(model.top_down.layers)
    gain, offset, covariance = conditional(
        joint(model), list(range(depth)), list(range(depth, depth + DIM))
    )
    return MultivariateNormal(gain @ x + offset, covariance)


def all_signs(depth: int) -> Tensor:
    """Every combination of -1 and +1, `[2**depth, depth]`."""
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return torch.cartesian_prod(*[signs] * depth)


def expected(model: HierarchicalVAE, x: Tensor, feed: Feed) -> Tensor:
    """Exact expectation of the reported ELBO of one datum."""
    signs = all_signs(len(model.top_down.layers))
    feed([column[:, None] for column in signs.T])
    many = x.expand(len(signs), DIM)
    return elbo(*model(many), many).elbo.mean()


def datum() -> Tensor:
    return torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)


@pytest.mark.parametrize("depth", DEPTHS)
def test_at_the_true_posterior_every_draw_gives_the_evidence(depth: int) -> None:
    model = linear_hierarchy(depth)
    make_exact(model)
    x = 2.0 * torch.randn(50, DIM, dtype=torch.float64)
    terms = elbo(*model(x), x)
    torch.testing.assert_close(terms.elbo, evidence(model, x), rtol=0.0, atol=1e-9)
    assert terms.log_px.std() > 0.1  # though its parts do depend on the draw


@pytest.mark.parametrize("depth", DEPTHS)
def test_at_the_true_posterior_iw_elbo_is_the_evidence_for_every_k(depth: int) -> None:
    model = linear_hierarchy(depth)
    make_exact(model)
    x = torch.randn(4, DIM, dtype=torch.float64)
    for samples in (1, 2, 30):
        bound = iw_elbo(model, x, samples, rows=40)
        torch.testing.assert_close(bound, evidence(model, x), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_gap_of_a_wrong_posterior_is_its_kl_to_the_true_one(depth: int, feed: Feed) -> None:
    model, x = linear_hierarchy(depth), datum()
    gap = kl_divergence(posterior(model, x), true_posterior(model, x))
    assert gap > 0.5
    torch.testing.assert_close(
        expected(model, x, feed), evidence(model, x) - gap, rtol=1e-10, atol=0.0
    )


def test_a_monte_carlo_mean_agrees_with_the_exact_gap() -> None:
    model, x, n = linear_hierarchy(2), datum(), 100_000
    gap = kl_divergence(posterior(model, x), true_posterior(model, x))
    many = x.expand(n, DIM)
    values = elbo(*model(many), many).elbo
    error = values.std() / n**0.5
    assert gap > 10 * error
    assert (values.mean() - (evidence(model, x) - gap)).abs() < 5 * error


@pytest.mark.parametrize("depth", DEPTHS)
def test_at_the_true_posterior_the_elbo_has_the_evidence_s_gradient(
    depth: int, feed: Feed
) -> None:
    model, x = linear_hierarchy(depth), datum()
    make_exact(model)
    weights = [p for net in prior_nets(model) for p in net.parameters()]
    weights += list(model.likelihood.parameters())
    bound = torch.autograd.grad(expected(model, x, feed), weights)
    truth = torch.autograd.grad(evidence(model, x), weights)
    for found, right in zip(bound, truth, strict=True):
        if found.shape == (2, 1):  # the evidence takes the scales as constant in the input
            found, right = found[0], right[0]
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_true_posterior_is_the_maximum_of_the_elbo(depth: int, feed: Feed) -> None:
    model, x = linear_hierarchy(depth), datum()
    make_exact(model)
    own = list(model.bottom_up.parameters())
    for gradient in torch.autograd.grad(expected(model, x, feed), own):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("depth", DEPTHS)
@torch.no_grad()
def test_iw_elbo_rises_with_k_to_the_evidence(depth: int) -> None:
    model = linear_hierarchy(depth)
    make_exact(model)
    rungs = [rung.posterior.net for rung in model.bottom_up.rungs.values()]
    rungs[0].bias[0] += 1.5 * (0.5 * rungs[0].bias[1]).exp()  # standard deviations beside
    for net in rungs:
        net.bias[1] += 0.4  # and wider, so that the weights are bounded
    truth, means, errors = evidence(model, datum()).item(), [], []
    for samples, n in ((1, 4000), (4, 4000), (1000, 150)):
        bound = iw_elbo(model, datum().expand(n, DIM), samples, rows=20_000)
        means.append(bound.mean().item())
        errors.append(bound.std().item() / n**0.5)
    assert means[1] > means[0] + 5 * (errors[0] + errors[1])
    assert means[2] > means[1] + 5 * (errors[1] + errors[2])
    assert truth > means[1] + 5 * errors[1]
    assert truth - 0.05 < means[2] < truth + 5 * errors[2]


@pytest.mark.parametrize("depth", DEPTHS)
def test_iw_elbo_does_not_depend_on_the_estimator_of_the_kl(depth: int) -> None:
    sampled, closed = linear_hierarchy(depth), linear_hierarchy(depth, "closed_form")
    x = torch.randn(6, DIM, dtype=torch.float64)
    torch.manual_seed(4)
    one = iw_elbo(sampled, x, 9)
    torch.manual_seed(4)
    assert torch.equal(one, iw_elbo(closed, x, 9))


def pair(model: HierarchicalVAE, x: Tensor) -> dict[str, Tensor]:
    """The letters of the two-layer case: q(z1) = N(m, s2), q(z2|z1) = N(a z1 + c, r2), and
    p(z1|z2) = N(b z2 + d, t2)."""
    one, two = (rung.posterior.net for rung in model.bottom_up.rungs.values())
    (prior,) = prior_nets(model)
    return {
        "m": one.weight[0] @ x + one.bias[0],
        "s2": one.bias[1].exp(),
        "a": two.weight[0, 0],
        "c": two.weight[0, 1:] @ x + two.bias[0],
        "r2": two.bias[1].exp(),
        "b": prior.weight[0, 0],
        "d": prior.bias[0],
        "t2": prior.bias[1].exp(),
    }


def test_closed_minus_sampled_is_a_b_s2_over_t2(feed: Feed) -> None:
    x = datum()
    sampled = expected(linear_hierarchy(2), x, feed)
    closed = expected(linear_hierarchy(2, "closed_form"), x, feed)
    v = pair(linear_hierarchy(2), x)
    difference = v["a"] * v["b"] * v["s2"] / v["t2"]
    assert difference.abs() > 0.01
    torch.testing.assert_close(sampled - closed, difference, rtol=1e-10, atol=0.0)


def test_closed_minus_sampled_with_numbers_chosen_by_hand(feed: Feed) -> None:
    a, b, s2, t2 = 1.5, 0.8, 0.5, 0.25
    bounds = []
    for kl in ("sampled", "closed_form"):
        model = linear_hierarchy(2, kl)
        one, two = (rung.posterior.net for rung in model.bottom_up.rungs.values())
        (prior,) = prior_nets(model)
        with torch.no_grad():
            one.bias[1] = torch.tensor(s2).log()
            two.weight[0, 0] = a
            prior.weight[0, 0], prior.bias[1] = b, torch.tensor(t2).log()
        bounds.append(expected(model, datum(), feed))
    assert (bounds[0] - bounds[1]).item() == pytest.approx(a * b * s2 / t2, rel=1e-6)  # 2.4 nats


def test_the_closed_form_bounds_the_mean_field_elbo(feed: Feed) -> None:
    """Its mean is the ELBO of q(z1|x) q(z2|x) less the information that q lets z2 hold of z1."""
    model, x = linear_hierarchy(2, "closed_form"), datum()
    v = pair(model, x)
    q = posterior(model, x)
    mean_field = MultivariateNormal(q.mean, q.covariance_matrix.diag().diag())
    bound = evidence(model, x) - kl_divergence(mean_field, true_posterior(model, x))
    information = 0.5 * (1.0 + v["a"] ** 2 * v["s2"] / v["r2"]).log()
    closed = expected(model, x, feed)
    torch.testing.assert_close(closed, bound - information, rtol=1e-10, atol=0.0)
    assert closed < bound < evidence(model, x)


def test_the_closed_form_is_the_mean_field_elbo_where_z2_ignores_z1(feed: Feed) -> None:
    model, x = linear_hierarchy(2, "closed_form"), datum()
    with torch.no_grad():
        list(model.bottom_up.rungs.values())[1].posterior.net.weight[0, 0] = 0.0
    gap = kl_divergence(posterior(model, x), true_posterior(model, x))
    torch.testing.assert_close(
        expected(model, x, feed), evidence(model, x) - gap, rtol=1e-10, atol=0.0
    )
