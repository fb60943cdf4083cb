"""Many draws for one datum: what no noise reaches is computed once, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladder.batch_axis import repeated
from ladder.build import build_model, list_presets
from ladder.distributions import Normal
from ladder.likelihoods import Bernoulli
from ladder.model import HierarchicalVAE
from ladder.objectives import iw_elbo, log_weight, per_datum

DENSE = [{"dim": 4, "hidden": [8]}, {"dim": 2, "hidden": [6], "repeat": 2}]
CONV = [
    {"channels": 2, "resolution": 4, "width": 4},
    {"channels": 2, "resolution": 2, "width": 4, "repeat": 2},
]
UPWARD = ("bottom_up", "ladder", "bidirectional")
MODELS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in list_presets("tiny_*")},
    **{
        f"{kind}_{inference}": {
            "config": {
                "system": "hierarchy",
                "shape": [1, 4, 4],
                "inference": inference,
                "likelihood": likelihood,
                "layers": layers,
            }
        }
        for inference in UPWARD
        for kind, layers, likelihood in [
            ("dense", DENSE, "bernoulli"),
            ("conv", CONV, "gaussian"),
        ]
    },
    **{
        f"biva_{inference}": {"preset": "tiny_biva", "inference": inference}
        for inference in ("bottom_up", "ladder")
    },
    "lvae_ladder": {"preset": "lvae_mnist_3layer"},
    "lvae_bottom_up": {"preset": "vae_mnist_3layer"},
}
DRAWING = {name for name in MODELS if "bottom_up" in name or "bidirectional" in name} | {
    "tiny_biva"
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str) -> HierarchicalVAE:
    return build_model(**MODELS[name]).double().eval()


def data(model: HierarchicalVAE, n: int) -> Tensor:
    return torch.rand(n, *model.shape or (), dtype=torch.float64)


def by_definition(model: HierarchicalVAE, x: Tensor, samples: int) -> Tensor:
    """The bound from the whole model on data repeated."""
    many = torch.cat([x] * samples)
    px, latents = model(many)
    weight = per_datum(px.log_prob(many))
    for v in latents.values():
        assert v.q is not None
        weight = weight + per_datum(v.p.log_prob(v.z) - v.q.log_prob(v.z))
    return weight.view(samples, -1).logsumexp(dim=0) - math.log(samples)


@every_model
@torch.no_grad()
def test_the_bound_is_that_of_the_whole_model_on_repeated_data(name: str) -> None:
    model = make(name)
    x = data(model, 3)
    torch.manual_seed(1)
    expected = by_definition(model, x, 4)
    torch.manual_seed(1)
    torch.testing.assert_close(iw_elbo(model, x, 4, rows=12), expected, rtol=1e-10, atol=1e-10)


@every_model
def test_two_steps_are_the_pass(name: str) -> None:
    model = make(name)
    x = data(model, 2)
    torch.manual_seed(1)
    px, latents = model(x)
    torch.manual_seed(1)
    found = model.draw(2, model.prepare(x))
    assert torch.equal(found[0].mean, px.mean)
    assert found[1].keys() == latents.keys()
    assert all(torch.equal(found[1][n].z, v.z) for n, v in latents.items())


def watched(model: HierarchicalVAE, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What happens going up: rows through each module with weights, by name, and draws."""
    events: list[tuple[str, int]] = []
    randn_like = torch.randn_like

    def drawn(like: Tensor, **options: Any) -> Tensor:
        events.append(("noise", len(like)))
        return randn_like(like, **options)

    def called(name: str) -> Callable[..., None]:
        return lambda _, args, __: events.append((name, len(args[0])))

    monkeypatch.setattr(torch, "randn_like", drawn)
    for name, part in model.bottom_up.named_modules():
        if next(part.parameters(recurse=False), None) is not None:
            part.register_forward_hook(called(name))
    return events


@every_model
@torch.no_grad()
def test_what_no_noise_reaches_is_computed_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    x, draws = data(model, 2), name in DRAWING
    events = watched(model, monkeypatch)
    prepared = model.prepare(x)
    before = [*events]
    assert before
    assert "noise" not in dict(before)
    events.clear()
    model.bottom_up.draw(prepared)
    assert [n for n, _ in events[:1]] == ["noise"][:draws]  # nothing that could have come before
    after = [n for n, _ in events if n != "noise"]
    events.clear()
    iw_elbo(model, x, 6, rows=4)
    rows = {n: [r for other, r in events if other == n] for n, _ in events if n != "noise"}
    assert rows == {n: [2] for n, _ in before} | {n: [4, 4, 4] for n in after}


def test_a_network_that_does_not_say_where_it_draws_sees_every_row() -> None:
    model = make("dense_bottom_up")
    x = data(model, 2)
    torch.manual_seed(1)
    expected = iw_elbo(model, x, 3, rows=6)
    model.bottom_up = Opaque(model.bottom_up)
    torch.manual_seed(1)
    torch.testing.assert_close(iw_elbo(model, x, 3, rows=6), expected)


def test_dropout_while_training_is_noise() -> None:
    model = make("tiny_lvae_conv")
    x = data(model, 2)
    assert model.prepare(x) is not x
    assert model.train().prepare(x) is x
    torch.manual_seed(1)
    expected = by_definition(model, x, 3)
    torch.manual_seed(1)
    torch.testing.assert_close(iw_elbo(model, x, 3), expected)


class Opaque(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("name", ["dense_bottom_up", "tiny_vdvae"])
def test_gradients_are_those_of_the_definition(name: str) -> None:
    model = make(name).train()
    x = data(model, 2)
    found = []
    for bound in (iw_elbo, by_definition):
        torch.manual_seed(1)
        loss = -bound(model, x, 5).mean()
        found.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    torch.testing.assert_close(*found)
    assert all(gradient is not None for gradient in found[0])


def test_a_tensor_that_stands_twice_is_repeated_once() -> None:
    h = torch.rand(2, 3)
    tree = repeated({"z1": h, "z2": (h, Normal(h, h[:, :1])), "n": 7}, 3)
    assert tree["z1"] is tree["z2"][0] is tree["z2"][1].mean
    assert torch.equal(tree["z1"], torch.cat([h, h, h]))
    assert tree["z2"][1].log_scale.shape == (6, 1)
    assert tree["n"] == 7
    assert repeated(h, 1) is h
    last = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert repeated(last, 3).is_contiguous(memory_format=torch.channels_last)


def test_log_weight_of_bernoulli_pixels_is_its_log_prob() -> None:
    logits = torch.tensor([-900.0, -30.0, -1.0, 0.0, 2.0, 25.0, 900.0], dtype=torch.float64)
    px = Bernoulli(logits.repeat(3, 2, 1).flatten(0, 1))  # 3 draws for each of 2 data
    x = torch.tensor([[0.0], [0.3]], dtype=torch.float64).expand(2, 7)
    expected = per_datum(px.log_prob(x.repeat(3, 1)))
    torch.testing.assert_close(log_weight(px, {}, x, draws=3), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("preset", "most"), [("mnist_2layer", 668), ("tiny_lvae_conv", 1024)])
def test_rows_that_are_not_given_are_bounded(preset: str, most: int) -> None:
    model = build_model(preset=preset).eval()
    sizes: list[int] = []
    model.top_down.register_forward_hook(lambda _, args, __: sizes.append(args[0]))
    with torch.no_grad():
        assert iw_elbo(model, data(model, 3).float(), 700).isfinite().all()
    assert most - 3 < max(sizes) <= most
    assert sum(sizes) == 3 * 700
