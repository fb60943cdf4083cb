"""What is optimised, what is reported, and the importance-weighted bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from ladder.build import build_model
from ladder.config import FreeBits
from ladder.distributions import Drawn, Joined, Normal
from ladder.latent import Latent
from ladder.likelihoods import Bernoulli
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, floored, iw_elbo, log_weight

UNITS = ["layer", "channel", "element"]


def latent(kl: Tensor) -> Latent:
    zeros = Normal(torch.zeros_like(kl), torch.zeros_like(kl))
    return Latent(torch.zeros_like(kl), zeros, zeros, kl)


def example() -> tuple[Bernoulli, dict[str, Latent], Tensor]:
    """p(x|z), the latents of a dense and a spatial layer, and data, B = 4."""
    latents = {
        "z2": latent(torch.rand(4, 3, dtype=torch.float64).requires_grad_()),
        "z1": latent(torch.rand(4, 2, 3, 2, dtype=torch.float64).requires_grad_()),
    }
    px = Bernoulli(torch.randn(4, 1, 5, 5, dtype=torch.float64))
    return px, latents, torch.rand(4, 1, 5, 5, dtype=torch.float64)


def two_layers(kl: str = "sampled") -> HierarchicalVAE:
    layers = [{"dim": 3, "hidden": [8]}, {"dim": 2, "hidden": [6]}]
    return build_model(
        config={"system": "hierarchy", "shape": [1, 3, 4], "kl": kl, "layers": layers}
    ).double()


def data(n: int) -> Tensor:
    return torch.rand(n, 1, 3, 4, dtype=torch.float64)


def test_terms_are_what_they_say() -> None:
    px, latents, x = example()
    terms = elbo(px, latents, x)
    m = px.logits.sigmoid()
    log_px = (x * m.log() + (1 - x) * (1 - m).log()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(terms.log_px, log_px)
    assert list(terms.kl) == ["z2", "z1"]
    for name, kl in terms.kl.items():
        by_hand = torch.stack([latents[name].kl[i].sum() for i in range(4)])
        torch.testing.assert_close(kl, by_hand)
    torch.testing.assert_close(terms.elbo, log_px - terms.kl["z1"] - terms.kl["z2"])
    torch.testing.assert_close(terms.loss, -terms.elbo.mean())
    assert terms.loss.shape == ()


def test_latents_without_a_posterior_cost_nothing() -> None:
    px, latents, x = example()
    free = {"z3": Latent(latents["z2"].z, latents["z2"].p), **latents}
    assert torch.equal(elbo(px, free, x).elbo, elbo(px, latents, x).elbo)
    assert list(elbo(px, free, x).kl) == ["z2", "z1"]


def test_a_datum_generated_from_the_priors_costs_nothing() -> None:
    model, x = two_layers(), data(3)
    terms = elbo(*model.decode(3), x)
    assert torch.equal(terms.elbo, terms.log_px)
    assert torch.equal(terms.loss, -terms.log_px.mean())


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0, torch.tensor(0.3)])
def test_beta_acts_on_the_loss_alone(beta: float | Tensor) -> None:
    px, latents, x = example()
    plain, weighted = elbo(px, latents, x), elbo(px, latents, x, beta)
    for field in ("elbo", "log_px", "kl"):
        torch.testing.assert_close(
            getattr(weighted, field), getattr(plain, field), rtol=0.0, atol=0.0
        )
    expected = float(beta) * (plain.kl["z1"] + plain.kl["z2"]).mean() - plain.log_px.mean()
    torch.testing.assert_close(weighted.loss, expected, rtol=1e-6, atol=1e-6)


def by_definition(kl: Tensor, free_bits: FreeBits) -> Tensor:
    """Free bits with loops: gather each unit, compare, add up."""
    batch = kl.shape[0]
    if free_bits.per == "layer":
        units = [[kl[b].sum()] for b in range(batch)]
    elif free_bits.per == "channel":
        units = [[kl[b, c].sum() for c in range(kl.shape[1])] for b in range(batch)]
    else:
        units = [list(kl[b].flatten()) for b in range(batch)]
    floor = torch.tensor(free_bits.nats, dtype=kl.dtype)
    columns = list(zip(*units, strict=True))
    if free_bits.average == "batch":
        return sum(torch.maximum(sum(c) / batch, floor) for c in columns)
    return sum(sum(torch.maximum(u, floor) for u in c) / batch for c in columns)


@pytest.mark.parametrize("per", UNITS)
@pytest.mark.parametrize("average", ["batch", "sample"])
@pytest.mark.parametrize("nats", [0.0, 0.5, 1.2, 2.9, 100.0])
def test_free_bits_are_their_definition(per: Any, average: Any, nats: float) -> None:
    free_bits = FreeBits(nats=nats, per=per, average=average)
    px, latents, x = example()
    terms = elbo(px, latents, x, 0.5, free_bits)
    cost = by_definition(latents["z1"].kl, free_bits) + by_definition(latents["z2"].kl, free_bits)
    torch.testing.assert_close(terms.loss, 0.5 * cost - terms.log_px.mean())
    plain = elbo(px, latents, x)
    assert torch.equal(terms.elbo, plain.elbo)
    assert all(torch.equal(terms.kl[name], plain.kl[name]) for name in plain.kl)


@pytest.mark.parametrize("per", UNITS)
@pytest.mark.parametrize("average", ["batch", "sample"])
def test_a_unit_under_the_floor_has_no_gradient(per: Any, average: Any) -> None:
    # Data 0 and 1 lie above any floor in channel 0 and below it in channel 1.
    kl = torch.full((2, 2, 3, 1), 0.01, dtype=torch.float64)
    kl[:, 0] = 5.0
    kl.requires_grad_()
    floored(kl, FreeBits(nats=1.0, per=per, average=average)).backward()
    assert kl.grad is not None
    assert torch.equal(kl.grad[:, 0], torch.full((2, 3, 1), 0.5, dtype=torch.float64))
    low = 0.5 if per == "layer" else 0.0
    assert torch.equal(kl.grad[:, 1], torch.full((2, 3, 1), low, dtype=torch.float64))


@pytest.mark.parametrize("average", ["batch", "sample"])
def test_free_bits_of_each_variable_of_a_layer(average: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    kl = 3.0 * torch.rand(5, 4, 2, generator=generator, dtype=torch.float64)
    half = Normal(kl[:, :3], kl[:, :3])
    joined = Joined(half, Drawn(Normal(kl[:, 3:], kl[:, 3:]), kl[:, 3:]))
    free_bits = FreeBits(nats=4.0, per="variable", average=average)
    of_layer = free_bits.model_copy(update={"per": "layer"})
    parts = floored(kl[:, :3], of_layer) + floored(kl[:, 3:], of_layer)
    torch.testing.assert_close(floored(kl, free_bits, joined), parts)
    assert parts > floored(kl, of_layer)
    # Of a single variable it is the layer's.
    assert torch.equal(floored(kl, free_bits, half), floored(kl, of_layer))
    assert torch.equal(floored(kl, free_bits), floored(kl, of_layer))


def test_both_averages_differ_where_they_should() -> None:
    kl = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    batch = floored(kl, FreeBits(nats=1.0, per="layer", average="batch"))
    sample = floored(kl, FreeBits(nats=1.0, per="layer", average="sample"))
    assert batch.item() == 1.5
    assert sample.item() == 2.0


def test_log_weight_is_the_joint_ratio() -> None:
    model, x = two_layers(), data(5)
    px, latents = model(x)
    z1, z2 = latents["z1"], latents["z2"]

    def log(normal: Normal, z: Tensor) -> Tensor:
        return td.Normal(normal.mean, normal.log_scale.exp()).log_prob(z).sum(dim=1)

    m = px.mean
    joint = (x * m.log() + (1 - x) * (1 - m).log()).flatten(1).sum(dim=1)
    joint = joint + td.Normal(0.0, 1.0).log_prob(z2.z).sum(dim=1) + log(z1.p, z1.z)
    expected = joint - log(z1.q, z1.z) - log(z2.q, z2.z)
    torch.testing.assert_close(log_weight(px, latents, x), expected)


def test_iw_elbo_with_one_sample_is_the_log_weight() -> None:
    model, x = two_layers(), data(5)
    torch.manual_seed(1)
    bound = iw_elbo(model, x, 1)
    torch.manual_seed(1)
    px, latents = model(x)
    assert torch.equal(bound, log_weight(px, latents, x))
    torch.testing.assert_close(bound, elbo(px, latents, x).elbo)


def test_gradient_of_iw_elbo_with_one_sample_is_that_of_the_elbo() -> None:
    model, x = two_layers(), data(5)
    torch.manual_seed(1)
    bound = torch.autograd.grad(-iw_elbo(model, x, 1).mean(), list(model.parameters()))
    torch.manual_seed(1)
    loss = torch.autograd.grad(elbo(*model(x), x).loss, list(model.parameters()))
    torch.testing.assert_close(bound, loss)


@pytest.mark.parametrize("rows", [1, 6, 9, 10, 22, 1000])
def test_chunks_do_not_change_iw_elbo(feed: Callable[[list[Tensor]], None], rows: int) -> None:
    model, x, samples = two_layers(), data(3), 7
    noise = [torch.randn(samples, 3, dim, dtype=torch.float64) for dim in (3, 2)]
    chunk = max(1, rows // 3)
    feed([n[i : i + chunk].flatten(0, 1) for i in range(0, samples, chunk) for n in noise])
    bound = iw_elbo(model, x, samples, rows)
    weights = []
    for k in range(samples):
        feed([n[k] for n in noise])
        weights.append(log_weight(*model(x), x))
    expected = torch.stack(weights).exp().mean(dim=0).log()
    torch.testing.assert_close(bound, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rows", "largest"), [(1000, 1000), (2, 3), (100_000, 15_000)])
def test_iw_elbo_is_bounded_in_memory(rows: int, largest: int) -> None:
    model, x = two_layers(), data(3)
    sizes: list[int] = []
    model.top_down.register_forward_hook(lambda _, args, __: sizes.append(args[0]))
    with torch.no_grad():
        bound = iw_elbo(model, x[:, :, :1, :1].expand_as(x), 5000 if rows > 2 else 50, rows)
    assert bound.isfinite().all()
    assert max(sizes) <= largest
    assert sum(sizes) == 3 * (5000 if rows > 2 else 50)


def test_iw_elbo_of_equal_weights_is_that_weight() -> None:
    class Fixed(torch.nn.Module):
        def prepare(self, x: Tensor) -> Tensor:
            return x

        def draw(self, n: int, x: Tensor) -> tuple[Bernoulli, dict[str, Latent]]:
            assert x.shape[0] == n
            return Bernoulli(torch.full_like(x, 900.0)), {}

    # log p = -900 for each of 12 pixels: far below what exp can hold.
    x = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    bound = iw_elbo(Fixed(), x, samples=10, rows=4)
    torch.testing.assert_close(bound, torch.full((2,), -12 * 900.0, dtype=torch.float64))


@pytest.mark.parametrize("samples", [1, 3, 20])
def test_iw_elbo_is_at_least_the_mean_elbo_of_the_same_draws(samples: int) -> None:
    model, x = two_layers(), data(4)
    torch.manual_seed(2)
    bound = iw_elbo(model, x, samples)
    torch.manual_seed(2)
    many = x.repeat(samples, 1, 1, 1)
    mean = elbo(*model(many), many).elbo.view(samples, 4).mean(dim=0)
    assert (bound >= mean - 1e-12).all()
