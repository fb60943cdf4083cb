"""Encoding, sampling, reconstructing, decoding from the top, interpolating."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ladder import sampling
from ladder.build import build_model
from ladder.errors import UserError
from ladder.model import HierarchicalVAE


def three_layers() -> HierarchicalVAE:
    """All latents have one size, so that noise used twice would show."""
    layers = [{"dim": 3, "hidden": [8], "repeat": 3}]
    model = build_model(config={"system": "hierarchy", "shape": [1, 3, 4], "layers": layers})
    return model.double().eval()


def data(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 3, 4, dtype=torch.float64)


CALLS: dict[str, Callable[[HierarchicalVAE, Tensor, int | None], Tensor]] = {
    "encode": lambda m, x, s: sampling.encode(m, x, s)["z1"].z,
    "sample": lambda m, x, s: sampling.sample(m, 4, seed=s).mean,
    "decode": lambda m, x, s: sampling.decode(m, {"z3": torch.ones(4, 3).to(x)}, seed=s).mean,
    "reconstruct": lambda m, x, s: sampling.reconstruct(m, x, 2, 1.0, seed=s).mean,
    "interpolate": lambda m, x, s: sampling.interpolate(m, x[0], x[1], ["z2"], seed=s).mean,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_seed_reproduces_and_leaves_the_generator_alone(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    model, x = three_layers(), data()
    before = torch.get_rng_state()
    first = call(model, x, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, call(model, x, 7))
    assert not torch.equal(first, call(model, x, 8))


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_without_a_seed_the_generator_goes_on(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    model, x = three_layers(), data()
    torch.manual_seed(1)
    first, second = call(model, x, None), call(model, x, None)
    torch.manual_seed(1)
    assert torch.equal(first, call(model, x, None))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_no_gradient_and_the_mode_is_kept(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    for mode in (True, False):
        model = three_layers().train(mode)
        assert not call(model, data(), 0).requires_grad
        assert model.training is mode


def test_layer_names_go_from_the_top() -> None:
    assert sampling.layer_names(three_layers()) == ["z3", "z2", "z1"]


def test_encode_is_the_forward_pass() -> None:
    model, x = three_layers(), data()
    latents = sampling.encode(model, x, seed=3)
    torch.manual_seed(3)
    for name, latent in model(x)[1].items():
        assert torch.equal(latents[name].z, latent.z)
        assert torch.equal(sampling.posterior_means(latents)[name], latent.q.mean)


def test_temperature_zero_needs_no_seed() -> None:
    model = three_layers()
    first = sampling.sample(model, 3, temperature=0.0).mean
    assert torch.equal(first, sampling.sample(model, 3, temperature=0.0).mean)
    torch.testing.assert_close(first, first[:1].expand_as(first))


def test_decoding_all_latents_draws_nothing() -> None:
    model, x = three_layers(), data()
    torch.manual_seed(3)
    px, latents = model(x)
    state = torch.get_rng_state()
    again = sampling.decode(model, {name: latent.z for name, latent in latents.items()})
    assert torch.equal(px.mean, again.mean)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("top", [1, 2, 3])
def test_reconstruct_keeps_exactly_the_top(monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    model, x = three_layers(), data()
    kept: list[dict[str, Tensor]] = []
    decode = HierarchicalVAE.decode

    def spy(self: HierarchicalVAE, n: int, z: dict[str, Tensor], *rest: float) -> object:
        kept.append(dict(z))
        return decode(self, n, z, *rest)

    monkeypatch.setattr(HierarchicalVAE, "decode", spy)
    found = sampling.reconstruct(model, x, top=top, seed=5)
    latents = sampling.encode(model, x, seed=5)
    assert list(kept[0]) == ["z3", "z2", "z1"][:top]
    assert all(torch.equal(z, latents[name].z) for name, z in kept[0].items())
    by_hand = decode(model, 4, kept[0], 0.0)[0]
    assert torch.equal(found.mean, by_hand.mean)


def test_reconstruct_keeps_all_by_default() -> None:
    model, x = three_layers(), data()
    torch.manual_seed(5)
    px, _ = model(x)
    assert torch.equal(sampling.reconstruct(model, x, seed=5).mean, px.mean)


def test_reconstruct_uses_no_noise_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the latents drawn from their priors would depend on those kept beyond p(z_l | z_>l).
    drawn: list[Tensor] = []
    randn_like = torch.randn_like

    def spy(like: Tensor) -> Tensor:
        drawn.append(randn_like(like))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn_like", spy)
    sampling.reconstruct(three_layers(), data(), top=1, temperature=1.0, seed=5)
    assert len(drawn) == 5  # three posteriors, two priors
    for i, noise in enumerate(drawn):
        assert not any(torch.equal(noise, other) for other in drawn[:i])


@pytest.mark.parametrize("levels", [["z3"], ["z1"], ["z3", "z1"], ["z1", "z2", "z3"]])
def test_interpolation_ends_at_the_posterior_means(levels: list[str]) -> None:
    model, x = three_layers(), data(2)
    walk = sampling.interpolate(model, x[0], x[1], levels, steps=5, seed=2).mean
    means = sampling.posterior_means(sampling.encode(model, x, seed=2))
    ends = sampling.decode(model, {name: means[name] for name in levels}, temperature=0.0).mean
    assert walk.shape == (5, 1, 3, 4)
    torch.testing.assert_close(walk[[0, -1]], ends, rtol=1e-12, atol=1e-12)
    middle = {name: means[name].mean(dim=0, keepdim=True) for name in levels}
    torch.testing.assert_close(
        walk[2:3], sampling.decode(model, middle, temperature=0.0).mean, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_model_s_dtype(dtype: torch.dtype) -> None:
    model, x = three_layers().to(dtype), data().to(dtype)
    for call in CALLS.values():
        assert call(model, x, 0).dtype == dtype


def test_mistakes_have_their_sentence() -> None:
    model, x = three_layers(), data()
    z = {"z33": torch.zeros(2, 3, dtype=torch.float64)}
    with pytest.raises(UserError, match=r"no layer 'z33'; did you mean 'z3'\?"):
        sampling.decode(model, z)
    with pytest.raises(UserError, match="no layer 'top'; choose from z1, z2, z3"):
        sampling.interpolate(model, x[0], x[1], ["z2", "top"])
    with pytest.raises(UserError, match="no latent is given"):
        sampling.decode(model, {})
    for top in (0, 4, -1):
        with pytest.raises(UserError, match=f"top={top} is not between 1 and 3"):
            sampling.reconstruct(model, x, top=top)
