"""NVAE: golden numbers, published sizes, other configurations beside a second implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nvae_reference as reference
import pytest
import torch
from torch import Tensor, nn

import ladder
from ladder.build import build_model, list_systems, resolve
from ladder.errors import UserError
from ladder.execution import compile_layers
from ladder.likelihoods import LogisticMixtureSpec, make_head
from ladder.model import HierarchicalVAE
from ladder.objectives import Balancing, balance, elbo, fair_shares, log_weight, per_datum
from ladder.penalties import BatchNormScales, SpectralNorms
from ladder.systems import nvae
from ladder.systems.nvae.arguments import released_config
from ladder.systems.nvae.cells import CELLS, Residual
from ladder.systems.nvae.parts import Above, SoftNormalHead, soft_normal

Options = reference.Options
A = Options(num_groups_per_scale=3, ada_groups=True, num_nf=1)
B = Options(
    dataset="mnist",
    num_preprocess_blocks=2,
    num_postprocess_blocks=2,
    num_cell_per_cond_enc=2,
    num_cell_per_cond_dec=2,
)
SMALL = Options(num_groups_per_scale=1, num_preprocess_cells=1, num_postprocess_cells=1, size=8)
# What the golden numbers leave out: each option the other way, and all published cells.
OTHERS: dict[str, Options] = {
    "no squeeze and excitation": SMALL._replace(use_se=False),
    "absolute posteriors": SMALL._replace(res_dist=False),
    "absolute posteriors and flows": SMALL._replace(res_dist=False, num_nf=1),
    "two flows, 5 bits": SMALL._replace(num_nf=2, num_x_bits=5),
    "no flows": A._replace(num_nf=0, num_groups_per_scale=2, size=8),
    "three scales": SMALL._replace(
        num_latent_scales=3, num_groups_per_scale=4, ada_groups=True
    )._replace(min_groups_per_scale=2, size=16, num_nf=1),
    "more cells": SMALL._replace(num_cell_per_cond_enc=2, num_cell_per_cond_dec=3),
    "wider going down": SMALL._replace(num_channels_dec=12, num_channels_enc=6),
    "wider going up": SMALL._replace(num_channels_dec=6, num_channels_enc=12, num_nf=1),
    "one scale": SMALL._replace(num_latent_scales=1, num_groups_per_scale=2),
    "other cells at the ends": SMALL._replace(num_preprocess_cells=3, num_postprocess_cells=2),
    "normal": SMALL._replace(num_mixture_dec=1),
    **{name: SMALL._replace(arch_instance=name, num_nf=1) for name in reference.ARCHES},
}


def config_of(options: Options) -> dict[str, Any]:
    """Our configuration for the released options; images as they enter the network."""
    said = {k: v for k, v in options._asdict().items() if k != "size"}
    raw = released_config(said)
    channels = raw["model"]["shape"][0]
    return {**raw, "model": {**raw["model"], "shape": [channels, *[options.size] * 2], "pad": 0}}


def filled(options: Options) -> tuple[HierarchicalVAE, dict[str, Tensor]]:
    """Our model and the released state dict that it holds."""
    model = build_model(config=config_of(options)).eval()
    state = reference.fill(reference.layout(options))
    model.load_state_dict(nvae.convert_released(state, model.config))
    return model, state


def empty(options: Options) -> dict[str, Tensor]:
    """A released state dict without its values."""
    shapes = reference.layout(options)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def images(model: HierarchicalVAE) -> Tensor:
    """The images of the golden numbers: black and white, or colours of so many bits."""
    channels, size, _ = model.config.shape
    levels = 2 if channels == 1 else 2**model.config.bits
    generator = reference.np.random.RandomState(7)
    drawn = generator.randint(0, levels, (2, channels, size, size)) / (levels - 1)
    return torch.from_numpy(drawn).float()


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the j-th draw be that of the seed `base` + j."""

    def start(base: int) -> None:
        noise = reference.noise_from(base)
        monkeypatch.setattr(
            torch, "randn_like", lambda like, **_: noise(tuple(like.shape)).to(like)
        )

    return start


def raw_output(model: HierarchicalVAE, features: Tensor) -> Tensor:
    """What the likelihood is made of: the released code's logits."""
    logits: Tensor = model.likelihood[0](features)
    return logits


# --- golden numbers ------------------------------------------------------------------------------

GOLDEN: dict[str, dict[str, Any]] = {
    "A": {
        "parameters": 124_556,
        "logits": (-418.032, 12751.1),
        "first": [0.102076, 0.0736375, 0.060234, 0.113501],
        "kl": [
            [7.15011, 2.02124],
            [60.1818, 35.6355],
            [123.526, 97.1351],
            [73.9357, 35.3902],
        ],
        "recon": [19202.9, 19236.9],
        "log_q": [-4746.77, -4677.41],
        "log_p": [-5011.56, -4847.59],
        "weight": [-19467.7, -19407.1],
        "gamma": [0.111889, 0.874988, 2.0148, 0.998321],
        "balanced": [112.845, 78.7337],
        "spectral": (106.769, 83),
        "norms": (31.9013, 38),
        "prior": (-789.599, 10222.5),
        "trained": (-402.32, 13590.4),
        "statistics": (-0.315562, 8.2899),
    },
    "B": {
        "parameters": 758_042,
        "logits": (106.693, 116.441),
        "first": [0.0519453, 0.0479822, 0.0671896, 0.0864868],
        "kl": [
            [0.0930989, 0.0961652],
            [0.607298, 0.750146],
            [3.51804, 3.72729],
            [4.14378, 3.96595],
        ],
        "recon": [543.624, 543.704],
        "log_q": [-932.093, -917.423],
        "log_p": [-938.734, -929.179],
        "weight": [-550.265, -555.459],
        "gamma": [0.153999, 1.01367, 1.33665, 1.49568],
        "balanced": [3.45903, 3.50673],
        "spectral": (139.837, 91),
        "norms": (59.8485, 70),
        "prior": (116.041, 116.399),
        "trained": (104.525, 121.727),
        "statistics": (-0.314899, 8.38564),
    },
}
CASES = {"A": A, "B": B}
every_golden = pytest.mark.parametrize("case", GOLDEN)


def near(expected: Any) -> Any:
    """The golden numbers have six digits."""
    return pytest.approx(expected, rel=1e-5)


@every_golden
@torch.no_grad()
def test_golden_numbers(case: str, draws: Any) -> None:
    golden, (model, _) = GOLDEN[case], filled(CASES[case])
    assert sum(p.numel() for p in model.parameters()) == golden["parameters"]
    x = images(model)
    draws(1000)
    features, latents = model.top_down(2, model.bottom_up(x))
    logits, px = raw_output(model, features), model.likelihood(features)
    assert [logits.sum().item(), logits.abs().sum().item()] == near(golden["logits"])
    assert logits.flatten()[:4].tolist() == near(golden["first"])
    kl = {name: per_datum(v.kl) for name, v in latents.items()}
    assert torch.stack(list(kl.values())).flatten().tolist() == near(
        [v for group in golden["kl"] for v in group]
    )
    log_px = px.log_prob(x)
    if case == "B":  # the window of the data in images padded by two
        log_px = log_px[:, :, 2:30, 2:30]
    assert (-per_datum(log_px)).tolist() == near(golden["recon"])
    log_q = sum(per_datum(v.q.log_prob(v.z)) for v in latents.values())
    log_p = sum(per_datum(v.p.log_prob(v.z)) for v in latents.values())
    assert log_q.tolist() == near(golden["log_q"])
    assert log_p.tolist() == near(golden["log_p"])
    assert (per_datum(log_px) + log_p - log_q).tolist() == near(golden["weight"])
    gamma = balance(kl, fair_shares({name: v.kl for name, v in latents.items()}))
    assert [v.item() for v in gamma.values()] == near(golden["gamma"])
    assert sum(0.3 * gamma[n] * kl[n] for n in kl).tolist() == near(golden["balanced"])


@every_golden
@torch.no_grad()
def test_golden_samples(case: str, draws: Any) -> None:
    model, _ = filled(CASES[case])
    draws(2000)
    logits = raw_output(model, model.top_down(2, temperature=0.7)[0])
    assert [logits.sum().item(), logits.abs().sum().item()] == near(GOLDEN[case]["prior"])


@every_golden
@torch.no_grad()
def test_golden_statistics_of_a_training_batch(case: str, draws: Any) -> None:
    golden, (model, _) = GOLDEN[case], filled(CASES[case])
    draws(1000)
    features, _ = model.train().top_down(2, model.bottom_up(images(model)))
    logits = raw_output(model, features)
    assert [logits.sum().item(), logits.abs().sum().item()] == near(golden["trained"])
    norm = model.bottom_up.cells[0].parts[0].norm
    found = [norm.running_mean.sum().item(), norm.running_var.sum().item()]
    assert found == near(golden["statistics"])


@every_golden
def test_golden_penalties(case: str) -> None:
    golden, (model, state) = GOLDEN[case], filled(CASES[case])
    total, count = golden["spectral"]
    spectral, scales = SpectralNorms(model), BatchNormScales(model)
    assert sum(map(len, spectral.groups.values())) == count
    exact = sum(torch.linalg.matrix_norm(m, 2) for m in reference.matrices(state, CASES[case]))
    assert exact.item() == near(total)
    assert spectral(100).item() == pytest.approx(total, rel=2e-3)
    total, count = golden["norms"]
    assert sum(map(len, scales.groups.values())) == count
    assert scales().item() == near(total)


@torch.no_grad()
def test_the_balanced_loss_is_made_of_the_golden_numbers(draws: Any) -> None:
    model, _ = filled(A)
    x = images(model)
    draws(1000)
    terms = elbo(*model(x), x, 0.3, balance=Balancing("scale"))
    golden = GOLDEN["A"]
    expected = sum(golden["recon"]) / 2 + sum(golden["balanced"]) / 2
    assert terms.loss.item() == near(expected)
    assert terms.kl["z4"].tolist() == near(golden["kl"][0])


# --- a second implementation ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("train", [False, True])
@torch.no_grad()
def test_other_configurations_agree(name: str, train: bool, draws: Any) -> None:
    options = OTHERS[name]
    model, state = filled(options)
    model, state = model.double(), {n: t.double() for n, t in state.items()}
    x = images(model).double()
    expected = reference.forward(state, options, x, reference.noise_from(1000), train=train)
    draws(1000)
    features, latents = model.train(train).top_down(2, model.bottom_up(x))
    close = torch.testing.assert_close
    close(raw_output(model, features), expected.logits)
    for latent, kl in zip(latents.values(), expected.kl, strict=True):
        close(per_datum(latent.kl), kl)
    close(sum(per_datum(v.q.log_prob(v.z)) for v in latents.values()), expected.log_q)
    close(sum(per_datum(v.p.log_prob(v.z)) for v in latents.values()), expected.log_p)
    if not train:
        samples = reference.sample(state, options, 3, 0.6, reference.noise_from(2000))
        draws(2000)
        close(raw_output(model, model.top_down(3, temperature=0.6)[0]), samples)


@pytest.mark.parametrize("name", OTHERS)
def test_penalties_of_other_configurations_agree(name: str) -> None:
    options = OTHERS[name]
    model, state = filled(options)
    matrices = reference.matrices(state, options)
    spectral = SpectralNorms(model)
    own = [m for group in spectral.groups.values() for m in group]
    assert len(own) == len(matrices)
    # What is done with them is tested with the penalties; here, that they are the same, masks too.
    theirs = sorted(m.abs().sum().item() for m in matrices)
    weights = [getattr(m, "effective_weight", lambda m=m: m.weight)() for m in own]
    assert sorted(w.abs().sum().item() for w in weights) == near(theirs)
    assert sum(w.sum().item() for w in weights) == pytest.approx(
        sum(m.sum().item() for m in matrices), rel=1e-4, abs=1e-3
    )
    scales = reference.batch_norm_scales(state)
    assert BatchNormScales(model)().item() == near(sum(s.abs().max().item() for s in scales))


@pytest.mark.parametrize("name", ["A", "B", *OTHERS])
def test_conversion_is_a_bijection(name: str) -> None:
    options = {**CASES, **OTHERS}[name]
    state = empty(options)
    with torch.device("meta"):
        model = build_model(config=config_of(options))
    own = {n: t for n, t in state.items() if not n.endswith("weight_normalized")}
    converted = nvae.convert_released(state, model.config)
    assert list(converted) == list(model.state_dict())
    assert len(converted) == len(own)
    same = [id(t) for t in converted.values() if t.shape != model.top_down.start.value.shape]
    assert sorted(same) == sorted(id(t) for n, t in own.items() if n != "prior_ftr0")


# --- the published models ------------------------------------------------------------------------

PUBLISHED: dict[str, tuple[Options, int, int, int, list[list[int]]]] = {
    "nvae_mnist": (
        Options("mnist", 32, 32, 2, 10, True, 1, 20, 2, 3, 2, 3, 2, 2),
        *(33_363_134, 255, 214),
        [[4, 5], [8, 10]],
    ),
    "nvae_cifar10": (
        Options("cifar10", 128, 128, 1, 30, False, 1, 20, 1, 2, 1, 2, 2, 2, 1),
        *(130_852_480, 610, 364),
        [[16, 30]],
    ),
    "nvae_celeba64": (
        Options("celeba_64", 64, 64, 3, 20, True, 1, 20, 1, 2, 1, 2, 2, 2, 1, size=64),
        *(153_281_364, 730, 436),
        [[8, 5], [16, 10], [32, 20]],
    ),
    "nvae_imagenet32": (
        Options("imagenet_32", 192, 192, 1, 28, False, 1, 20, 1, 2, 1, 2, 2, 2, 1),
        *(268_509_444, 570, 340),
        [[16, 28]],
    ),
    "nvae_celebahq256": (
        Options("celeba_256", 30, 30, 5, 16, True, 4, 20, 1, 2, 1, 2, 2, 2, 2, size=256),
        *(330_798_664, 986, 460),
        [[8, 4], [16, 4], [32, 4], [64, 8], [128, 16]],
    ),
}


def test_both_models_of_256_pixels_are_the_same() -> None:
    assert resolve("nvae_ffhq256").model == resolve("nvae_celebahq256").model


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_models(preset: str) -> None:
    options, parameters, convolutions, norms, latents = PUBLISHED[preset]
    state = empty(options)
    with torch.device("meta"):
        model = build_model(preset)
        shapes = [list(v.z.shape[1:]) for v in model.decode(1)[1].values()]
    assert sum(p.numel() for p in model.parameters()) == parameters
    modules = list(model.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in modules) == norms
    assert shapes == [[20, size, size] for size, count in latents for _ in range(count)]
    converted = nvae.convert_released(state, model.config)
    assert {n: t.shape for n, t in converted.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


# Batch, epochs, epochs of warm-up, steps of an epoch, lr, lambda and where it begins.
RECIPES = {
    "nvae_mnist": (200 * 2, 400, 5, 60_000, 1e-2, 1e-2, None),
    "nvae_cifar10": (32 * 8, 400, 5, 50_000, 1e-2, 1e-2, None),
    "nvae_celeba64": (16 * 8, 90, 5, 162_770, 1e-2, 1e-1, None),
    "nvae_imagenet32": (24 * 24, 45, 1, 1_281_147, 1e-2, 1e-2, 1.0),
    "nvae_celebahq256": (4 * 24, 300, 5, 27_000, 1e-2, 1e-2, 1.0),
    "nvae_ffhq256": (4 * 24, 200, 5, 63_000, 8e-3, 1e-1, 1.0),
}


@pytest.mark.parametrize("preset", RECIPES)
def test_published_recipes(preset: str) -> None:
    batch, epochs, warmup, data, lr, weight, start = RECIPES[preset]
    config = resolve(preset)
    train, objective = config.train, config.objective
    steps = -(-data // batch)  # ours uses the last, smaller batch
    total = train.total_steps(data)
    assert (train.batch_size, train.epochs, total) == (batch, epochs, epochs * steps)
    assert (train.warmup_steps, train.warmup_from_zero) == (warmup * steps, True)
    assert (train.optimizer, train.betas, train.eps) == ("adamax", [0.9, 0.999], 1e-3)
    assert (train.lr, train.weight_decay, train.grad_clip, train.ema) == (lr, 3e-4, None, None)
    assert train.lr_decay is not None
    assert (train.lr_decay.end, train.lr_decay.every) == (1e-4, steps)
    annealing = objective.kl_annealing
    assert annealing.kind == "linear"
    assert annealing.steps == pytest.approx(0.3 * total, abs=0.5)
    assert (annealing.delay, annealing.least) == (pytest.approx(1e-4 * total), 1e-4)
    assert (annealing.start, annealing.end) == (0.0, 1.0)
    assert objective.balance is not None
    assert (objective.balance.by, objective.balance.steps) == ("scale", None)
    assert objective.penalties is not None
    penalties = objective.penalties
    assert (penalties.spectral, penalties.batch_norm, penalties.start) == (weight, weight, start)
    assert objective.free_bits is None
    assert config.data.flip == (preset != "nvae_mnist")
    assert config.data.binarize == ("dynamic" if preset == "nvae_mnist" else "none")


# --- parts ---------------------------------------------------------------------------------------


def test_it_is_a_built_in_system() -> None:
    assert "nvae" in list_systems()


def test_soft_clamps() -> None:
    raw = torch.tensor([[-1e4, 0.0, 2.0, -1e4, 0.0, 1e4]]).double()
    normal = soft_normal(raw)
    five = 5.0 * torch.tanh(torch.tensor(0.4).double())
    torch.testing.assert_close(normal.mean, torch.stack([-5.0 + 0 * five, 0 * five, five])[None])
    scales = torch.tensor([[-5.0, 0.0, 5.0]]).double().exp() + 0.01
    torch.testing.assert_close(normal.log_scale.exp(), scales)


@torch.no_grad()
def test_the_top_prior_has_the_published_scale() -> None:
    model = build_model("tiny_nvae")
    p = model.decode(2)[1]["z3"].p
    assert not p.mean.any()
    torch.testing.assert_close(p.log_scale.exp(), torch.full_like(p.mean, 1.01))


@torch.no_grad()
def test_padding_is_seen_but_not_scored() -> None:
    """A padded model is the one on padded images, and p(x|z) is of the window."""
    padded = build_model("tiny_nvae", shape=[1, 12, 8], pad=2, likelihood="bernoulli").eval()
    whole = build_model("tiny_nvae", shape=[1, 16, 12], likelihood="bernoulli").eval()
    whole.load_state_dict(padded.state_dict())
    x = torch.rand(3, 1, 12, 8)
    torch.manual_seed(1)
    px, latents = padded(x)
    torch.manual_seed(1)
    expected, same = whole(nn.functional.pad(x, (2, 2, 2, 2)))
    assert torch.equal(px.logits, expected.logits[:, :, 2:-2, 2:-2])
    assert all(torch.equal(latents[n].kl, same[n].kl) for n in latents)
    assert px.log_prob(x).shape == x.shape


@torch.no_grad()
def test_fewer_bits_hide_the_rest_from_the_encoder() -> None:
    likelihood = {"kind": "logistic_mixture", "bits": 5}
    model = build_model("tiny_nvae", shape=[3, 8, 8], likelihood=likelihood).eval()
    levels = torch.randint(32, (2, 3, 8, 8))
    coarse = levels * 8 / 255
    fine = (levels * 8 + torch.randint(8, levels.shape)) / 255
    one, two, three = (model.bottom_up(x) for x in (coarse, fine, levels / 31))
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n], three[n]) for n in one)


def test_the_density_of_normals_integrates_to_one() -> None:
    raw = torch.tensor([[0.3, -0.5]]).double().view(1, 2, 1)
    px = SoftNormalHead()(raw)
    x = torch.linspace(-20.0, 21.0, 200_001, dtype=torch.float64).view(1, 1, -1)
    # A density of y = 2x - 1, so dy = 2 dx.
    assert torch.trapezoid(px.log_prob(x).exp(), 2.0 * x).item() == pytest.approx(1.0)
    mean = torch.trapezoid(px.log_prob(x).exp() * x, 2.0 * x)
    assert px.mean.item() == pytest.approx(mean.item())
    many = SoftNormalHead()(raw.expand(1, 2, 100_000)).sample()
    assert many.mean().item() == pytest.approx(px.mean.item(), abs=0.01)


def published_mixture(raw: Tensor, x: Tensor, bits: int, mixtures: int) -> Tensor:
    """log p(x|z) of the description, pixel by pixel, `[B, H, W]`; x in 8 bits."""
    level = ((255.0 * x).round() / 2 ** (8 - bits)).floor()
    y = 2.0 * level / (2**bits - 1) - 1.0
    logits, rest = raw[:, :mixtures], raw[:, mixtures:].unflatten(1, (3, 3, mixtures))
    means, scales, coefficients = (list(part.unbind(1)) for part in rest.unbind(2))
    k0, k1, k2 = (c.tanh() for c in coefficients)
    means[1] = means[1] + k0 * y[:, :1]
    means[2] = means[2] + k1 * y[:, :1] + k2 * y[:, 1:2]
    total = logits.log_softmax(1)
    softplus = nn.functional.softplus
    for colour in range(3):
        v, log_scale = y[:, colour : colour + 1], scales[colour].clamp(min=-7.0)
        inverse, centred = (-log_scale).exp(), v - means[colour]
        plus = inverse * (centred + 1 / (2**bits - 1))
        minus = inverse * (centred - 1 / (2**bits - 1))
        middle = inverse * centred
        mass = plus.sigmoid() - minus.sigmoid()
        density = middle - log_scale - 2.0 * softplus(middle) - math.log((2**bits - 1) / 2)
        inside = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
        upper = torch.where(v > 0.99, -softplus(minus), inside)
        total = total + torch.where(v < -0.999, plus - softplus(plus), upper)
    return total.logsumexp(1)


@pytest.mark.parametrize("bits", [5, 8])
def test_the_mixture_is_the_published_one(bits: int) -> None:
    """At 8 bits the last two levels are open above, at 5 bits only the last, as published."""
    x = torch.randint(256, (4, 3, 8, 8)).double() / 255
    x[0], x[1], x[2] = 1.0, 254 / 255, 0.0
    raw = 3.0 * torch.randn(4, 100, 8, 8, dtype=torch.float64)
    head = make_head(LogisticMixtureSpec(bits=bits, bins="nvae"))
    expected = published_mixture(raw, x, bits, 10)
    torch.testing.assert_close(head(raw).log_prob(x)[:, 0], expected)


@torch.no_grad()
def test_small_changes_of_a_prior_survive_low_precision() -> None:
    """Sums of priors and changes are float32: in bfloat16 0.001 beside 1 is nothing."""
    merge = build_model("tiny_nvae", flows=0).top_down.layers["z1"].merge
    for parameter in merge.combiner.parameters():
        parameter.zero_()
    merge.combiner.sampler.bias.fill_(0.001)
    raw = torch.ones(1, 8, 4, 4, dtype=torch.bfloat16)
    features = torch.zeros(1, 16, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = merge(Above(features, raw), features, soft_normal(raw))
    change = 0.001 / math.cosh(0.2) ** 2  # of 5 tanh(m / 5) at 1
    assert (q.mean - soft_normal(raw).mean).mean().item() == pytest.approx(change, rel=0.01)


@torch.no_grad()
def test_one_layer_is_a_plain_vae() -> None:
    """No cells at its scale, no constant, and a state made of z alone, as published."""
    model = build_model("tiny_nvae", groups=[1]).eval()
    names = list(model.state_dict())
    assert not any("start" in n or "transition" in n for n in names)
    assert len(model.bottom_up.cells) == 1
    z = torch.randn(2, 4, 4, 4)
    state, latent = model.top_down.layers["z1"](model.top_down.start(2), None, z)
    conv = model.top_down.layers["z1"].combine.conv
    assert torch.equal(state, conv(z))
    assert latent.z is z
    released = {n.replace("log_norm", "log_weight_norm"): t for n, t in model.state_dict().items()}
    assert conv.weight.shape == (16, 4, 1, 1)
    known = nvae.released.places(model.config)
    theirs = {nvae.released.released_name(n, known): t for n, t in model.state_dict().items()}
    assert len(theirs) == len(released)
    theirs["prior_ftr0"] = torch.rand(16, 4, 4)  # which is there, and unused
    assert list(nvae.convert_released(theirs, model.config)) == names


@torch.no_grad()
def test_importance_weights_use_the_flows() -> None:
    model = build_model("tiny_nvae").eval()
    x = torch.rand(2, 1, 8, 8)
    torch.manual_seed(4)
    px, latents = model(x)
    expected = per_datum(px.log_prob(x)) - sum(per_datum(v.kl) for v in latents.values())
    torch.testing.assert_close(log_weight(px, latents, x), expected)


def test_data_dependent_initialisation_of_cells_without_batch_norm() -> None:
    torch.manual_seed(2)
    model = build_model("tiny_nvae", cells="res_elu")
    x = torch.rand(64, 1, 8, 8)
    nvae.initialise(model, x)
    seen: list[Tensor] = []
    parts = [m for m in model.modules() if isinstance(m, Residual)]
    for part in parts:
        part.conv.register_forward_hook(lambda _, inputs, output: seen.append(output))
    torch.manual_seed(2)
    model.bottom_up(x)  # whose activations do not depend on noise
    assert len(seen) == 5 * 2
    for output in seen:
        spread, mean = torch.std_mean(output, dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(spread, torch.full_like(spread, 0.2), atol=1e-4, rtol=0)
    before = {n: t.clone() for n, t in build_model("tiny_nvae").state_dict().items()}
    model = build_model("tiny_nvae")
    model.load_state_dict(before)
    nvae.initialise(model, x)  # cells with batch norm have nothing to initialise
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(UserError, match="needs a batch of at least 2 data"):
        nvae.initialise(build_model("tiny_nvae", cells="res_elu"), x[:1])


def test_training_initialises_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The release does it again whenever a checkpoint is loaded."""
    calls: list[int] = []
    original = nvae.initialise
    monkeypatch.setattr(nvae, "initialise", lambda m, x: (calls.append(len(x)), original(m, x)))
    words = ["model.cells=res_elu", "objective.penalties=null", "train.checkpoint_every=1"]
    ladder.fit(resolve("tiny_nvae", [*words, "train.steps=1"]), tmp_path / "run", quiet=True)
    config = resolve("tiny_nvae", [*words, "train.steps=2"])
    ladder.fit(config, tmp_path / "run", resume=True, quiet=True)
    assert calls == [32]


def graphs(groups: list[int]) -> int:
    """Number of graphs when every layer and cell is compiled by itself."""
    torch._dynamo.reset()
    model = build_model("tiny_nvae", groups=groups)
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    compile_layers(model, backend)
    model(torch.rand(4, 1, 8, 8))
    return len(seen)


@torch.no_grad()
def test_layers_compile_to_as_many_graphs_at_any_depth() -> None:
    assert graphs([2, 1]) == graphs([4, 1]) <= 12


@pytest.mark.parametrize("cells", CELLS)
@torch.no_grad()
def test_all_published_cells_change_the_resolution_both_ways(cells: str) -> None:
    model = build_model("tiny_nvae", shape=[1, 8, 12], cells=cells, groups=[1, 2]).eval()
    px, latents = model(torch.rand(2, 1, 8, 12))
    assert px.mean.shape == (2, 1, 8, 12)
    assert [tuple(v.z.shape[2:]) for v in latents.values()] == [(2, 3), (2, 3), (4, 6)]


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": [3]}, r"'shape' should be \[channels, height, width\], not \[3\]"),
        (
            {"shape": [1, 9, 8]},
            r"'shape' \[1, 9, 8\] with 'pad' 0 is 9 x 8, which cannot be halved 2 times; have "
            r"fewer scales \('groups' has 2\) or 'blocks' \(1\), or images whose height and width "
            r"with 'pad' are multiples of 4",
        ),
        ({"blocks": 3}, "cannot be halved 4 times"),
        ({"groups": []}, "groups: needs at least 1 item"),
        ({"groups": [2, 0]}, r"groups\[1\]: should be greater than or equal to 1, not 0"),
        ({"cells": "res_mbconv9"}, "cells: unknown value 'res_mbconv9'; did you mean 'res_mbconv"),
        ({"cells": "mbconv_den", "channels": 12}, "'channels' 12 is no multiple of 8"),
        ({"cells": "mbconv_den", "decoder_channels": 9}, "'channels' 9 is no multiple of 8"),
        ({"channels": 1}, "channels: should be greater than or equal to 2, not 1"),
        ({"likelihood": "soft_norm"}, "likelihood: unknown value 'soft_norm'; did you mean 'soft"),
        ({"zdims": 3}, "no field 'zdims'; did you mean 'zdim'"),
    ],
)
def test_impossible_declarations(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_model("tiny_nvae", **changes)


def test_a_state_that_does_not_fit_is_listed_by_layer() -> None:
    options = OTHERS["one scale"]
    config = build_model(config=config_of(options)).config
    state = reference.fill(reference.layout(options))
    del state["dec_tower.1._ops.0.conv.0.bn.bias"]
    state["enc_sampler.1.weight"] = torch.zeros(8, 16, 1, 1)
    state["nf_cells.0.cell1.mu.conv_0.bias"] = torch.zeros(4)
    with pytest.raises(UserError) as caught:
        nvae.convert_released(state, config)
    assert str(caught.value).splitlines()[1:] == [
        "  dec_tower.1: _ops.0.conv.0.bn.bias missing",
        "  enc_sampler.1: weight 8x16x1x1, not 8x16x3x3",
        "  nf_cells.0: cell1.mu.conv_0.bias unexpected",
    ]


@pytest.mark.parametrize("cells", ["res_elu", "res_bnelu"])
def test_cells_of_which_no_checkpoint_is_known(cells: str) -> None:
    config = build_model("tiny_nvae", cells=cells).config
    with pytest.raises(UserError, match=f"no released layout is known for 'cells: {cells}'"):
        nvae.convert_released({}, config)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_parallel_training_s_prefix_is_taken_off(prefix: str) -> None:
    options = OTHERS["two flows, 5 bits"]
    config = build_model(config=config_of(options)).config
    state = reference.fill(reference.layout(options))
    converted = nvae.convert_released({f"{prefix}{n}": t for n, t in state.items()}, config)
    assert torch.equal(converted["bottom_up.stem.weight"], state["stem.weight"])
    assert torch.equal(converted["top_down.start.value"][0], state["prior_ftr0"])


def test_a_latent_of_the_wrong_shape() -> None:
    sentence = r"given as \[2, 4\], but its prior has \[2, 4, 2, 2\]"
    with pytest.raises(UserError, match=sentence):
        ladder.decode(build_model("tiny_nvae"), {"z3": torch.zeros(2, 4)})
