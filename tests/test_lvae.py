"""The dense Ladder VAE against its definition, written here once more in plain operations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Feed
from torch import Tensor
from torch.optim.swa_utils import update_bn

from ladder.build import build_model, preset_config, resolve
from ladder.distributions import Drawn, Normal
from ladder.errors import UserError
from ladder.merges import PrecisionWeighted
from ladder.model import HierarchicalVAE
from ladder.pretrained import pointed, read_weights
from ladder.schedules import SCHEDULES
from ladder.systems import lvae
from ladder.train import fit

TINY: dict[str, Any] = {
    "system": "lvae",
    "shape": [5],
    "layers": [{"dim": 3, "hidden": 6}, {"dim": 2, "hidden": 4}],
}
KINDS: dict[str, dict[str, Any]] = {
    "shared": {},
    "unshared": {"share": False},
    "features_up": {"only_mu_up": False},
    "no_batch_norm": {"batch_norm": False, "share": False},
    "bottom_up": {"inference": "bottom_up"},
}
B = 7


def config(**fields: Any) -> lvae.Config:
    return lvae.Config(**{**TINY, **fields})


def normal(mean: float, variance: float) -> Normal:
    return Normal(torch.tensor(mean), torch.tensor(variance).sqrt().log())


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "fields", "parameters"),
    [
        ("vae_mnist_3layer", {}, 1_694_192),
        ("lvae_mnist_3layer", {}, 2_129_456),
        ("lvae_mnist_3layer", {"share": True}, 1_694_192),
        ("lvae_mnist", {}, 1_711_560),
        ("lvae_mnist", {"inference": "bottom_up"}, 1_711_560),
        ("lvae_mnist_unshared", {}, 2_175_000),
    ],
)
def test_parameter_counts(preset: str, fields: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(preset, **fields)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_only_ladder_inference_has_something_not_to_share() -> None:
    with pytest.raises(UserError, match=r"'share: false' goes with 'inference: ladder'"):
        build_model(config={**TINY, "inference": "bottom_up", "share": False})


# --- parts --------------------------------------------------------------------------------------


def test_the_product_of_two_gaussians() -> None:
    q = PrecisionWeighted()(None, normal(3.0, 0.5), normal(1.0, 2.0))
    assert q.mean.item() == pytest.approx(2.6)
    assert (2.0 * q.log_scale).exp().item() == pytest.approx(0.4)


def test_without_sharing_the_prior_has_no_say() -> None:
    merge = lvae.OwnTopDown(lambda h: normal(1.0, 2.0))  # type: ignore[arg-type]
    q = merge(torch.zeros(1), normal(3.0, 0.5), normal(100.0, 1e-4))
    assert q.mean.item() == pytest.approx(2.6)


@torch.no_grad()
def test_a_block_is_affine_batch_norm_leaky_rectifier() -> None:
    linear, norm, _ = block = lvae.mlp(3, 4, config(blocks=1)).double()
    norm.weight.normal_(), norm.bias.normal_(), linear.bias.normal_()
    x = 1e-5 * torch.randn(B, 3, dtype=torch.float64)  # so small that 1e-10 beside it counts
    h = x @ linear.weight.T + linear.bias
    mean, variance = h.mean(0), ((h - h.mean(0)) ** 2).sum(0) / B
    expected = (h - mean) / (variance + 1e-10).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(block(x), torch.where(expected > 0, expected, 0.01 * expected))
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance * B / (B - 1))


def test_the_variance_is_softplus_and_a_floor() -> None:
    raw = torch.tensor([-800.0, -20.0, -1.0, 0.0, 3.0, 800.0], dtype=torch.float64)
    p = lvae.GaussianHead(torch.nn.Identity())(torch.cat([raw, raw])[None])
    assert torch.equal(p.mean[0], raw)
    expected = raw.exp().log1p() + 1e-5
    expected[-1] = 800.0 + 1e-5
    torch.testing.assert_close((2.0 * p.log_scale[0]).exp(), expected)


@pytest.mark.parametrize("inference", ["ladder", "bottom_up"])
def test_initial_weights_are_glorot_s(inference: str) -> None:
    model = build_model("lvae_mnist", inference=inference)
    rung = model.bottom_up.rungs["z1"]
    net, head = rung.net, (rung.evidence if inference == "ladder" else rung.posterior).net[0]
    for weight, gain, fans in (
        (net[0].weight, math.sqrt(2.0), 784 + 512),
        (net[3].weight, math.sqrt(2.0), 512 + 512),
        (head.weight[:64], 1.0, 512 + 64),
        (head.weight[64:], 1.0, 512 + 64),
        (model.likelihood[0].weight, 1.0, 512 + 784),
    ):
        assert weight.std().item() == pytest.approx(gain * math.sqrt(2.0 / fans), rel=0.02)
        assert weight.mean().item() == pytest.approx(0.0, abs=5 * gain / math.sqrt(fans) / 181)
    limit = math.sqrt(6.0 / (512 + 64))
    assert (head.weight.abs().max().item() <= limit) == (inference == "ladder")  # uniform or not
    assert torch.equal(head.bias, torch.cat([torch.zeros(64), torch.ones(64)]))
    assert not net[0].bias.any()
    assert not model.likelihood[0].bias.any()


# --- the recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset", ["lvae_mnist", "lvae_mnist_unshared", "lvae_mnist_3layer", "vae_mnist_3layer"]
)
def test_the_published_recipe(preset: str) -> None:
    whole = preset_config(preset)
    schedule = whole.objective.kl_annealing.model_dump()
    weight = SCHEDULES[schedule.pop("kind")]
    epoch = math.ceil(60_000 / whole.train.batch_size)
    for e in (0, 1, 50, 199, 200, 2000):
        assert weight(e * epoch, **schedule).item() == pytest.approx(min(1.0, e / 200))
    assert whole.train.total_steps(60_000) == 2000 * epoch
    assert whole.data.binarize == "dynamic"


# --- one forward pass by hand -------------------------------------------------------------------


class Plain:
    """The model of `TINY` from its weights, with no module of ours."""

    def __init__(self, model: HierarchicalVAE, fields: dict[str, Any]) -> None:
        self.w = model.state_dict()
        self.norm = fields.get("batch_norm", True)
        self.share = fields.get("share", True)
        self.only_mu_up = fields.get("only_mu_up", True)

    def affine(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def block(self, x: Tensor, name: str, i: int) -> Tensor:
        h = self.affine(x, f"{name}.{i}")
        if self.norm:
            h = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + 1e-10)
            h = h * self.w[f"{name}.{i + 1}.weight"] + self.w[f"{name}.{i + 1}.bias"]
        return h

    def mlp(self, x: Tensor, name: str) -> Tensor:
        for i in (0, 3) if self.norm else (0, 2):
            h = self.block(x, name, i)
            x = torch.maximum(h, 0.01 * h)
        return x

    def gaussian(self, x: Tensor, net: str, head: str) -> tuple[Tensor, Tensor]:
        mean, raw = self.block(self.mlp(x, net), f"{head}.net", 0).split(
            self.w[f"{head}.net.0.bias"].numel() // 2, dim=1
        )
        return mean, torch.log1p(torch.exp(raw)) + 1e-5

    def prior(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        layer = "top_down.layers.z1"
        if self.share:
            return self.gaussian(z2, f"{layer}.transition", f"{layer}.prior")
        return self.gaussian(z2, f"{layer}.prior.0", f"{layer}.prior.1")

    def log_px(self, x: Tensor, z1: Tensor) -> Tensor:
        m = 1.0 / (1.0 + torch.exp(-self.affine(self.mlp(z1, "top_down.finish"), "likelihood.0")))
        return (x * m.log() + (1.0 - x) * (1.0 - m).log()).sum(1)

    def ladder(self, x: Tensor, e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z) and the closed KLs of z1 and z2."""
        up = "bottom_up.rungs"
        d1 = self.mlp(x, f"{up}.z1.net")
        m1, v1 = self.gaussian(x, f"{up}.z1.net", f"{up}.z1.evidence")
        m2, v2 = self.gaussian(m1 if self.only_mu_up else d1, f"{up}.z2.net", f"{up}.z2.evidence")
        z2 = m2 + v2.sqrt() * e2
        p, own = self.prior(z2), "top_down.layers.z1.merge.top_down"
        td, vt = p if self.share else self.gaussian(z2, f"{own}.0", f"{own}.1")
        precision = 1.0 / v1 + 1.0 / vt
        m, v = (m1 / v1 + td / vt) / precision, 1.0 / precision
        z1 = m + v.sqrt() * e1
        standard = torch.zeros_like(m2), torch.ones_like(v2)
        return self.log_px(x, z1), closed((m, v), p), closed((m2, v2), standard)

    def bottom_up(self, x: Tensor, e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z) and log q - log p of z1 and z2 at the draw."""
        up = "bottom_up.rungs"
        m1, v1 = self.gaussian(x, f"{up}.z1.net", f"{up}.z1.posterior")
        z1 = m1 + v1.sqrt() * e1
        m2, v2 = self.gaussian(z1, f"{up}.z2.net", f"{up}.z2.posterior")
        z2 = m2 + v2.sqrt() * e2
        standard = torch.zeros_like(m2), torch.ones_like(v2)
        kl1 = density(z1, (m1, v1)) - density(z1, self.prior(z2))
        return self.log_px(x, z1), kl1, density(z2, (m2, v2)) - density(z2, standard)


Moments = tuple[Tensor, Tensor]


def closed(q: Moments, p: Moments) -> Tensor:
    (m, v), (n, w) = q, p
    return (0.5 * (torch.log(w / v) + (v + (m - n) ** 2) / w - 1.0)).sum(1)


def density(z: Tensor, p: Moments) -> Tensor:
    mean, v = p
    return (-0.5 * torch.log(2.0 * torch.pi * v) - (z - mean) ** 2 / (2.0 * v)).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_by_hand(kind: str, feed: Feed) -> None:
    fields = KINDS[kind]
    model = build_model(config={**TINY, **fields}).double()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases, and batch norm's two, say nothing at 0 and 1
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.rand(B, 5, dtype=torch.float64)
    e1, e2 = (torch.randn(B, n, dtype=torch.float64) for n in (3, 2))
    plain = Plain(model, fields)
    upwards = kind == "bottom_up"
    expected = (plain.bottom_up if upwards else plain.ladder)(x, e1, e2)
    feed([e1, e2] if upwards else [e2, e1])
    px, latents = model(x)
    ours = px.log_prob(x).sum(1), latents["z1"].kl.sum(1), latents["z2"].kl.sum(1)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert all(isinstance(v.q, Drawn if upwards else Normal) for v in latents.values())


# --- batch norm between training and evaluating --------------------------------------------------


@torch.no_grad()
def test_update_bn_keeps_the_statistics_of_the_whole_set() -> None:
    model = build_model(config=TINY)
    x = torch.rand(50, 5)
    update_bn([x], model)
    linear, norm = model.bottom_up.rungs["z1"].net[:2]
    h = linear(x)
    torch.testing.assert_close(norm.running_mean, h.mean(0))
    torch.testing.assert_close(norm.running_var, h.var(0))
    assert norm.momentum == 0.1


def test_resuming_keeps_the_running_averages_too(tmp_path: Path) -> None:
    section = {**TINY, "shape": [1, 8, 8]}
    train = {"batch_size": 100, "grad_clip": 4.0, "grad_clip_value": 0.9, "device": "cpu"}
    source = {"model": section, "data": "digits", "train": {**train, "steps": 12}}
    fit(resolve(source), tmp_path / "whole", quiet=True)
    fit(resolve(source, ["train.steps=7"]), tmp_path / "parts", quiet=True)
    fit(resolve(source), tmp_path / "parts", resume=True, quiet=True)
    lasts = [pointed(tmp_path / run / "checkpoints", "last") for run in ("whole", "parts")]
    one, two = (read_weights(last / "model.safetensors") for last in lasts if last)
    assert any("running_var" in name for name in one)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("preset", "layers"), [("lvae_mnist", 5), ("vae_mnist_3layer", 3)])
def test_presets_train_on_the_digits(preset: str, layers: int, tmp_path: Path) -> None:
    words = ["data=digits", "train.steps=2", "train.device=cpu", "train.batch_size=32"]
    result = fit(resolve(preset, words), tmp_path / "run", quiet=True).evaluation
    assert math.isfinite(result.elbo)
    assert list(result.kl) == [f"z{i}" for i in range(layers, 0, -1)]
