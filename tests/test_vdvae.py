"""VD-VAE: published numbers, the released layout and optimiser, the first 43 layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ladder
from ladder.build import build_model, list_systems, resolve
from ladder.errors import UserError
from ladder.execution import compile_layers
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo
from ladder.systems import vdvae
from ladder.systems.vdvae.released import released_name, released_order
from ladder.train.state import new_state
from ladder.train.step import train_step

CIFAR = {"mean": 120.63838, "std": 64.16736}
PUBLISHED = {"kind": "logistic_mixture", "bins": "vdvae"}
A: dict[str, Any] = {
    "system": "vdvae",
    "shape": [3, 8, 8],
    "width": 16,
    "zdim": 4,
    "normalize": CIFAR,
    "likelihood": PUBLISHED,
    "scales": [
        {"resolution": 8, "layers": 2, "encoder_blocks": 3},
        {"resolution": 4, "layers": 3, "encoder_blocks": 2},
        {"resolution": 1, "layers": 1, "encoder_blocks": 1},
    ],
}
# The released strings of a configuration, and ours: encoder, decoder, widths, then the fields.
STRINGS: dict[str, tuple[str, str, str]] = {
    "A": ("8x2,8d2,4x1,4d4,1x1", "1x1,4m1,4x2,8m4,8x1", ""),
    "wide": (
        "16x1,16d2,8x2,8d2,4x1,4d2,2x2,2d2,1x1",
        "1x2,2m1,4m2,4x1,8m4,8x2,16m8,16x1",
        "8:12,4:16,2:16,1:24",
    ),
    "skipping": ("12d2,6x1,6d2,3d3", "1x1,6m1,6x1,12m1", ""),
    "unmixed": ("8x3,8d4,2x1", "2x2,8x2", ""),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "A": {},
    "wide": {
        "shape": [3, 16, 16],
        "width": 8,
        "zdim": 3,
        "no_bias_above": 4,
        "bottleneck": 0.5,
        "likelihood": {**PUBLISHED, "mixtures": 2},
        "scales": [
            {"resolution": 16, "layers": 2, "encoder_blocks": 2},
            {"resolution": 8, "layers": 3, "encoder_blocks": 3, "width": 12},
            {"resolution": 4, "layers": 2, "encoder_blocks": 2, "width": 16},
            {"resolution": 2, "layers": 1, "encoder_blocks": 3, "width": 16},
            {"resolution": 1, "layers": 2, "encoder_blocks": 1, "width": 24},
        ],
    },
    "skipping": {
        "shape": [3, 12, 12],
        "width": 8,
        "zdim": 2,
        "likelihood": {**PUBLISHED, "mixtures": 3, "bits": 5},
        "scales": [
            {"resolution": 12, "layers": 1, "encoder_blocks": 1, "mix": 1},
            {"resolution": 6, "layers": 2, "encoder_blocks": 2},
            {"resolution": 3, "layers": 0, "encoder_blocks": 1},
            {"resolution": 1, "layers": 1, "encoder_blocks": 0},
        ],
    },
    "unmixed": {
        "shape": [3, 8, 8],
        "width": 8,
        "zdim": 4,
        "no_bias_above": 2,
        "scales": [
            {"resolution": 8, "layers": 2, "encoder_blocks": 4, "mix": False},
            {"resolution": 2, "layers": 2, "encoder_blocks": 1},
        ],
    },
}
every_option = pytest.mark.parametrize("option", OPTIONS)


def make(option: str = "A", **changes: Any) -> HierarchicalVAE:
    return build_model(config={**A, **OPTIONS[option], **changes})


# --- the released layout, written down from its description --------------------------------------


def parsed(string: str) -> list[tuple[int, int | None]]:
    """Blocks as (resolution, pooling or mixed resolution)."""
    blocks: list[tuple[int, int | None]] = []
    for word in string.split(","):
        if "x" in word:
            resolution, times = map(int, word.split("x"))
            blocks += [(resolution, None)] * times
        elif "m" in word or "d" in word:
            resolution, other = map(int, word.replace("d", "m").split("m"))
            blocks.append((resolution, other))
        else:
            blocks.append((int(word), None))
    return blocks


def conv(prefix: str, channels: int, out: int, kernel: int) -> Iterator[tuple[str, list[int]]]:
    yield f"{prefix}.weight", [out, channels, kernel, kernel]
    yield f"{prefix}.bias", [out]


def block(prefix: str, channels: int, inner: int, out: int, size: int) -> Iterator[Any]:
    kernel = 3 if size > 2 else 1
    yield from conv(f"{prefix}.c1", channels, inner, 1)
    yield from conv(f"{prefix}.c2", inner, inner, kernel)
    yield from conv(f"{prefix}.c3", inner, inner, kernel)
    yield from conv(f"{prefix}.c4", inner, out, 1)


def released_parameters(config: Any, strings: tuple[str, str, str]) -> dict[str, list[int]]:
    """Names and shapes in the order of the released module's `named_parameters`."""
    encoder, decoder, widths = strings
    said = dict(tuple(map(int, pair.split(":"))) for pair in widths.split(",") if pair)
    z, base = config.zdim, config.width

    def width(size: int) -> int:
        return said.get(size, base)

    def walk() -> Iterator[Any]:
        yield from conv("encoder.in_conv", 3, base, 3)
        for i, (size, _) in enumerate(parsed(encoder)):
            w, inner = width(size), int(width(size) * config.bottleneck)
            yield from block(f"encoder.enc_blocks.{i}", w, inner, w, size)
        yield "decoder.gain", [1, base, 1, 1]
        yield "decoder.bias", [1, base, 1, 1]
        for i, (size, _) in enumerate(parsed(decoder)):
            w, inner, name = width(size), int(width(size) * config.bottleneck), f"dec_blocks.{i}"
            yield from block(f"decoder.{name}.enc", 2 * w, inner, 2 * z, size)
            yield from block(f"decoder.{name}.prior", w, inner, 2 * z + w, size)
            yield from conv(f"decoder.{name}.z_proj", z, w, 1)
            yield from block(f"decoder.{name}.resnet", w, inner, w, size)
        for j, size in enumerate(sorted({size for size, _ in parsed(decoder)})):
            if size <= config.no_bias_above:
                yield f"decoder.bias_xs.{j}", [1, width(size), size, size]
        yield from conv("decoder.out_net.out_conv", base, 10 * config.likelihood.mixtures, 1)

    return dict(walk())


def released_state(config: Any, option: str = "A") -> dict[str, Tensor]:
    """fill(0.3) by the parameters' order."""
    state = {}
    for k, (name, shape) in enumerate(released_parameters(config, STRINGS[option]).items()):
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        state[name] = (0.3 * torch.sin(0.37 * i + 1.3 * k)).float().view(shape)
    return state


def filled(option: str) -> HierarchicalVAE:
    model = make(option)
    state = released_state(model.config, option)
    model.load_state_dict(vdvae.convert_released(state, model.config))
    return model


def pattern(size: int) -> Tensor:
    """Two images, numbered with the channels last."""
    values = (37 * torch.arange(2 * size * size * 3) + 11) % 256
    return values.view(2, size, size, 3).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def eps(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every draw's noise be zero, or cos(0.7 j) for its j-th element."""

    def choose(kind: str) -> None:
        def randn_like(like: Tensor, **_: Any) -> Tensor:
            j = torch.arange(like.numel(), dtype=torch.float64)
            return (torch.cos(0.7 * j) * (kind == "cos")).to(like).view(like.shape)

        monkeypatch.setattr(torch, "randn_like", randn_like)

    return choose


# --- golden numbers ------------------------------------------------------------------------------

GOLDEN: list[tuple[str, str, float, float, list[float]]] = [
    (
        *("A", "zero", 7.730948, 6.559796),
        [1.0240, 31.5734, 45.0079, 25.0580, 257.2503, 89.8086],
    ),
    (
        *("A", "cos", 7.728412, 6.560161),
        [1.0240, 31.5131, 44.9612, 25.0766, 256.5582, 89.4755],
    ),
    # From here on what the released module gives for the configurations above.
    (
        *("wide", "cos", 9.034290, 6.354694),
        [1.3341, 1.9718, 2.5264, 21.5851, 43.2403, 95.6133, 83.6518, 73.2032, 389.7361, 3402.9968],
    ),
    ("skipping", "cos", 4.759054, 4.223329, [1.1358, 5.6855, 37.9004, 418.1450]),
    ("unmixed", "cos", 6.995691, 6.319512, [5.9709, 10.7218, 82.2894, 160.6706]),
]


@pytest.mark.parametrize(("option", "kind", "loss", "distortion", "kl"), GOLDEN)
@torch.no_grad()
def test_golden_numbers(
    option: str, kind: str, loss: float, distortion: float, kl: list[float], eps: Any
) -> None:
    model = filled(option)
    size = model.config.shape[1]
    x, dimensions = pattern(size), 3 * size * size
    eps(kind)
    terms = elbo(*model(x), x)
    assert -terms.elbo.mean().item() / dimensions == pytest.approx(loss, rel=1e-5)
    assert -terms.log_px.mean().item() / dimensions == pytest.approx(distortion, rel=1e-5)
    assert [v.sum().item() for v in terms.kl.values()] == pytest.approx(kl, rel=2e-5, abs=6e-5)


@pytest.mark.parametrize(
    ("option", "given", "drawn", "partial"),
    [
        ("A", 3, -63.02591, -19.78306),
        ("wide", 2, 469.9183, 459.0866),
        ("skipping", 2, 418.5178, 433.1470),
        ("unmixed", 2, 158.0161, 158.1723),
    ],
)
@torch.no_grad()
def test_golden_samples(option: str, given: int, drawn: float, partial: float, eps: Any) -> None:
    model = filled(option)
    eps("cos")
    features, _ = model.top_down(2, temperature=0.7)
    assert features.sum().item() == pytest.approx(drawn, rel=1e-5)
    if option == "A":
        assert features.abs().mean().item() == pytest.approx(0.321131, rel=1e-5)
    latents = model(pattern(model.config.shape[1]))[1]
    z = {name: latents[name].z for name in list(latents)[:given]}
    features, _ = model.top_down(2, z=z, temperature=0.1)
    assert features.sum().item() == pytest.approx(partial, rel=1e-5)


SUMS = {
    "encoder.in_conv.weight": -0.591319,
    "encoder.enc_blocks.4.c4.weight": -0.359423,
    "decoder.dec_blocks.0.enc.c1.weight": 1.227677,
    "decoder.dec_blocks.5.resnet.c4.weight": 0.192948,
    "decoder.dec_blocks.5.z_proj.weight": 0.763512,
    "decoder.out_net.out_conv.weight": 13.046366,
}


def test_initial_weights_are_the_released_code_s() -> None:
    model = make()
    theirs = {released_name(name, model.config): p for name, p in model.named_parameters()}
    for name, total in SUMS.items():
        assert theirs[name].sum().item() == pytest.approx(total, abs=1e-5)
    size = sum(p.abs().sum().item() for p in model.parameters())
    assert size == pytest.approx(1140.1567, rel=1e-6)
    for name, parameter in theirs.items():
        zero = name.endswith(".bias") or "prior.c4" in name or "bias_xs" in name
        assert bool(parameter.any()) != zero, name


def test_initial_weights_of_the_published_model() -> None:
    model = build_model("vdvae_cifar10")
    size = sum(p.double().abs().sum().item() for p in model.parameters())
    assert size == pytest.approx(652_319.824, rel=1e-6)


def test_three_published_steps(eps: Any) -> None:
    """Ours, as training runs them: clipping, the loss per dimension, AdamW."""
    recipe = resolve("vdvae_cifar10").train.model_dump()
    recipe |= {"steps": 3, "warmup_steps": 0, "seed": 0}
    raw = {"model": A, "objective": {"per": "dimension"}, "data": "digits", "train": recipe}
    config = resolve(raw)
    state = new_state(config, torch.device("cpu"))
    x = pattern(8)
    eps("zero")
    losses, norms = [], []
    for _ in range(3):
        state.meter.clear()
        train_step(state, x, config)
        means = state.meter.read()
        losses.append(-means["train/elbo"] / 192)
        norms.append(means["train/grad_norm"])
    assert losses == pytest.approx([6.289540, 6.287638, 6.285720], abs=2e-5)
    assert norms == pytest.approx([0.51124, 0.50942, 0.51054], abs=1e-5)


# --- the published models ------------------------------------------------------------------------

PLANS = {
    "vdvae_cifar10": (
        "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
        "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
        "",
    ),
    "vdvae_imagenet32": (
        "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
        "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
        "",
    ),
    "vdvae_imagenet64": (
        "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
        "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
        "",
    ),
    "vdvae_ffhq256": (
        "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
        "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
        "",
    ),
    "vdvae_ffhq1024": (
        "1024x1,1024d2,512x3,512d2,256x5,256d2,128x7,128d2,64x10,64d2,32x14,32d2,16x7,16d2,8x5,"
        "8d2,4x5,4d4,1x4",
        "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x20,64m32,64x14,128m64,128x7,256m128,256x2,"
        "512m256,1024m512",
        "512:32,256:64,128:512,64:512,32:512,16:512,8:512,4:512,1:512",
    ),
}


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors", "layers", "latents"),
    [
        ("vdvae_cifar10", 39_145_700, 1393, 43, 412_432),
        ("vdvae_imagenet32", 119_280_868, 2423, 78, 765_216),
        ("vdvae_imagenet64", 125_005_860, 2482, 75, 1_451_040),
        ("vdvae_ffhq256", 114_874_852, 2272, 66, 4_470_816),
        ("vdvae_ffhq1024", 109_366_904, 2392, 70, 27_588_640),
    ],
)
def test_published_models(
    preset: str, parameters: int, tensors: int, layers: int, latents: int
) -> None:
    with torch.device("meta"):
        model = build_model(preset)
    config = model.config
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert config.layers == len(model.top_down.layers) == layers
    assert sum(s.layers * s.resolution**2 for s in config.scales) * config.zdim == latents
    theirs = released_parameters(config, PLANS[preset])
    assert [released_name(name, config) for name in released_order(config)] == list(theirs)
    state = {name: torch.empty(shape, device="meta") for name, shape in theirs.items()}
    converted = vdvae.convert_released(state, config)
    assert {n: t.shape for n, t in converted.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


@pytest.mark.parametrize("preset", PLANS)
def test_published_plans(preset: str) -> None:
    """Which layer mixes what, and where the upward pass pools, read from the strings."""
    with torch.device("meta"):
        model = build_model(preset)
    layers = [(layer.resolution, layer.mix) for layer in model.top_down.layers.values()]
    assert layers == parsed(PLANS[preset][1])
    pools = [b.pool for b in model.bottom_up.blocks]
    assert pools == [pool or 1 for _, pool in parsed(PLANS[preset][0])]


@pytest.mark.parametrize("preset", PLANS)
def test_published_recipes(preset: str) -> None:
    config = resolve(preset)
    train, scale = config.train, config.model.normalize
    assert train.optimizer == "adamw"
    assert train.betas == [0.9, 0.9]
    assert train.weight_decay == 0.01
    assert train.eps == 1e-8
    assert (train.warmup_steps, train.warmup_from_zero) == (100, True)
    assert config.objective.per == "dimension"
    assert config.objective.beta == 1.0
    assert config.objective.free_bits is None
    expected = {
        "vdvae_cifar10": (32, 2e-4, 0.9999, 200.0, 400.0, 10, 8, -120.63838, 1 / 64.16736),
        "vdvae_imagenet32": (256, 1.5e-4, 0.999, 200.0, 300.0, 10, 8, -116.2373, 1 / 69.37404),
        "vdvae_imagenet64": (128, 1.5e-4, 0.999, 220.0, 380.0, 10, 8, -115.92961967, 1 / 69.37404),
        "vdvae_ffhq256": (
            32,
            1.5e-4,
            0.999,
            130.0,
            180.0,
            10,
            5,
            -112.8666757481,
            1 / 69.84780273,
        ),
        "vdvae_ffhq1024": (32, 7e-5, 0.999, 360.0, 500.0, 2, 8, -0.4387 * 255, 1 / 0.2743 / 255),
    }[preset]
    likelihood = config.model.likelihood
    assert likelihood.bins == "vdvae"
    found = [train.batch_size, train.lr, train.ema, train.grad_clip, train.skip_norm]
    found += [likelihood.mixtures, likelihood.bits, -scale.mean, 1 / scale.std]
    assert found == pytest.approx(expected, rel=1e-12)


# --- the released files --------------------------------------------------------------------------


@every_option
def test_conversion_is_a_bijection(option: str) -> None:
    model = make(option)
    state = released_state(model.config, option)
    converted = vdvae.convert_released(state, model.config)
    assert sorted(map(id, converted.values())) == sorted(map(id, state.values()))
    assert list(converted) == list(model.state_dict())
    assert [released_name(n, model.config) for n in released_order(model.config)] == list(state)


def test_parallel_training_s_prefix_is_taken_off() -> None:
    config = make().config
    state = released_state(config)
    converted = vdvae.convert_released({f"module.{n}": t for n, t in state.items()}, config)
    plain = vdvae.convert_released(state, config)
    assert all(converted[name] is tensor for name, tensor in plain.items())


def test_a_state_that_does_not_fit_is_listed_by_layer() -> None:
    config = make().config
    state = released_state(config)
    del state["decoder.dec_blocks.2.prior.c4.bias"]
    state["encoder.enc_blocks.1.c2.weight"] = torch.zeros(4, 4, 1, 1)
    state["decoder.bias_xs.3"] = torch.zeros(1, 16, 16, 16)
    with pytest.raises(UserError) as caught:
        vdvae.convert_released(state, config)
    assert str(caught.value).splitlines()[1:] == [
        "  decoder.bias_xs: 3 unexpected",
        "  decoder.dec_blocks.2: prior.c4.bias missing",
        "  encoder.enc_blocks.1: c2.weight 4x4x1x1, not 4x4x3x3",
    ]


@pytest.mark.parametrize("option", ["wide", "skipping", "unmixed"])
def test_another_model_s_state_is_refused(option: str) -> None:
    with pytest.raises(UserError, match="not of this configuration") as caught:
        vdvae.convert_released(released_state(make().config), make(option).config)
    assert len(str(caught.value).splitlines()) <= 10


def released_optimizer(config: Any, step: int = 7) -> dict[str, Any]:
    """What apex's FusedAdam saves: moments by number, and one count for all."""
    shapes = released_parameters(config, STRINGS["A"]).values()
    moments = {
        i: {"exp_avg": torch.full(shape, float(i)), "exp_avg_sq": torch.full(shape, i + 0.5)}
        for i, shape in enumerate(shapes)
    }
    group = {"lr": 1e-4, "bias_correction": True, "betas": (0.9, 0.9), "eps": 1e-8}
    group |= {"weight_decay": 0.01, "initial_lr": 1e-4, "step": step}
    return {"state": moments, "param_groups": [{**group, "params": list(range(len(moments)))}]}


def test_moments_go_to_their_parameters() -> None:
    model = make()
    converted = vdvae.convert_optimizer(released_optimizer(model.config), model.config)
    own = dict(model.named_parameters())
    assert converted.keys() == own.keys()
    for i, name in enumerate(released_order(model.config)):
        assert converted[name]["exp_avg"].shape == own[name].shape
        assert (converted[name]["exp_avg"] == i).all()
        assert (converted[name]["exp_avg_sq"] == i + 0.5).all()
        assert converted[name]["step"].item() == 7.0


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1, "many", None])
def test_a_count_of_steps_that_is_none_is_refused(step: Any) -> None:
    config = make().config
    with pytest.raises(UserError, match="not the state of the released optimiser"):
        vdvae.convert_optimizer(released_optimizer(config, step), config)


def test_another_optimiser_s_state_is_refused() -> None:
    config = make().config
    with pytest.raises(UserError, match="not the state of the released optimiser"):
        vdvae.convert_optimizer({"state": {}}, config)
    state = released_optimizer(config)
    state["state"][3]["exp_avg"] = state["state"][3]["exp_avg_sq"] = torch.zeros(5)
    with pytest.raises(UserError, match=r"encoder.enc_blocks.0: c1.bias 5, not 4"):
        vdvae.convert_optimizer(state, config)
    state["state"][3]["exp_avg"] = torch.zeros(4)
    with pytest.raises(UserError, match="its moments are not alike"):
        vdvae.convert_optimizer(state, config)
    state["param_groups"][0]["params"] = [0, 1]
    with pytest.raises(UserError, match="of 2 parameters, but this configuration has 213"):
        vdvae.convert_optimizer(state, config)


# --- the model -----------------------------------------------------------------------------------


def test_it_is_a_built_in_system() -> None:
    assert "vdvae" in list_systems()


@torch.no_grad()
def test_evidence_is_the_last_activation_of_a_resolution() -> None:
    model = make("wide").eval()
    evidence = model.bottom_up(torch.rand(2, 3, 16, 16))
    sizes = {name: list(d.shape[1:]) for name, d in evidence.items()}
    assert sizes["z1"] == [8, 16, 16]
    assert sizes["z10"] == [24, 1, 1]
    for name, layer in model.top_down.layers.items():
        assert sizes[name][1] == layer.resolution
    assert evidence["z1"] is evidence["z2"]


@torch.no_grad()
def test_all_layers_reach_the_data() -> None:
    model = filled("A").eval()
    latents = model(pattern(8))[1]
    z = {name: latent.z for name, latent in latents.items()}
    px, _ = model.decode(2, z)
    for name in z:
        other, _ = model.decode(2, {**z, name: z[name] + 1.0})
        assert not torch.equal(px.mean, other.mean), name


@torch.no_grad()
def test_a_scale_that_does_not_mix_hides_those_above() -> None:
    model = filled("unmixed").eval()
    latents = model(pattern(8))[1]
    z = {name: latent.z for name, latent in latents.items()}
    px, _ = model.decode(2, z)
    other, _ = model.decode(2, {**z, "z4": z["z4"] + 1.0, "z3": z["z3"] - 1.0})
    assert torch.equal(px.mean, other.mean)


def test_new_priors_are_standard_and_maps_zero() -> None:
    model = make()
    for latent in model.decode(2)[1].values():
        assert not latent.p.mean.any()
        assert not latent.p.log_scale.any()
    assert all(not tensor.any() for tensor in model.top_down.start(2).values())


def graphs(repeat: int) -> int:
    """Number of graphs when every layer and block is compiled by itself."""
    torch._dynamo.reset()
    plan = [{**s, "layers": 1 + repeat, "encoder_blocks": 1 + repeat} for s in A["scales"]]
    model = make(scales=plan)
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    compile_layers(model, backend)
    model(pattern(8))
    return len(seen)


@torch.no_grad()
def test_layers_compile_to_as_many_graphs_at_any_depth() -> None:
    # Each of three resolutions has a first layer and others, blocks that keep it and one that
    # pools, but for the top; tensors of one position may count as laid out otherwise.
    assert graphs(1) == graphs(5) <= 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": [3, 8, 4]}, r"should be \[channels, size, size\], not \[3, 8, 4\]"),
        ({"shape": [3, 16, 16]}, r"scales\[0\]: 'resolution' is 8, but the data have 16"),
        (
            {"scales": [{"resolution": 8}, {"resolution": 3}]},
            r"scales\[1\]: 'resolution' is 3, which should be one of \[1, 2, 4\]",
        ),
        (
            {"scales": [{"resolution": 8, "layers": 0}]},
            r"scales\[0\]: 'layers' should be at least",
        ),
        (
            {"scales": [{"resolution": 8, "encoder_blocks": 0}, {"resolution": 4}]},
            r"scales\[0\]: 'encoder_blocks' should be at least 1: the last one pools",
        ),
        (
            {"scales": [{"resolution": 8}, {"resolution": 4, "width": 8}]},
            r"scales\[1\]: 'width' is 8, less than the 16 of the scale below",
        ),
        (
            {"scales": [{"resolution": 8, "mix": 2}, {"resolution": 4}]},
            r"scales\[0\]: 'mix' is 2, but the scales above that have layers are \[4\]",
        ),
        ({"width": 3}, "'bottleneck' 0.25 of 3 channels leaves none"),
        ({"scales": []}, "needs at least 1 item"),
        ({"zdims": 3}, "no field 'zdims'; did you mean 'zdim'"),
    ],
)
def test_impossible_declarations(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**changes)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.rand(2, 3, 16, 16), r"x has shape \[2, 3, 16, 16\].* are \[B, 3, 8, 8\]"),
        (torch.rand(2, 8, 8, 3), r"build the model with shape=\[8, 8, 3\]"),
        (torch.rand(3, 8, 8), r"x has shape \[3, 8, 8\], one datum alone; give x\[None\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"x is torch.uint8; give floats in \[0, 1\]"),
    ],
)
def test_images_of_the_wrong_kind(x: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()(x)


def test_a_latent_of_the_wrong_shape() -> None:
    sentence = r"given as \[2, 4\], but its prior has \[2, 4, 1, 1\]"
    with pytest.raises(UserError, match=sentence):
        ladder.decode(make(), {"z6": torch.zeros(2, 4)})
