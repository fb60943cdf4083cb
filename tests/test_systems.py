"""One life for every kind of model and every preset: from its gradients to its disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladder.build import build_model, list_presets
from ladder.distributions import ClosedDrawn, Drawn, Joined, Normal, Sampled
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, iw_elbo, per_datum
from ladder.pretrained import from_pretrained, save_pretrained
from ladder.systems.nvae.cells import SqueezeExcitation

B = 8
ROUNDING = 1e-6  # of a KL of nothing
TINY: dict[str, dict[str, Any]] = {
    "one_layer_vector": {"shape": [5], "layers": [{"dim": 3, "hidden": [16]}]},
    "two_layers_image": {
        "shape": [1, 4, 3],
        "kl": "closed_form",
        "layers": [{"dim": 4, "hidden": [16, 12]}, {"dim": 2, "hidden": [16]}],
    },
    "five_layers_log_scale": {
        "shape": [3, 2, 2],
        "scale": "log_scale",
        "activation": "tanh",
        "likelihood": "gaussian",
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 2, "hidden": [16], "repeat": 4}],
    },
    "three_affine_layers": {
        "shape": [6],
        "kl": "closed_form",
        "scale": "softplus_variance",
        "likelihood": "gaussian",
        "layers": [{"dim": 3}, {"dim": 2, "repeat": 2}],
    },
    "ladder_dense": {
        "shape": [1, 4, 3],
        "inference": "ladder",
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 3, "hidden": [12]}, {"dim": 2}],
    },
    "ladder_concat_learned_top": {
        "shape": [7],
        "inference": "ladder",
        "merge": "concat",
        "top": "learned",
        "state": "skip",
        "likelihood": "gaussian",
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 3, "hidden": [12], "repeat": 2}],
    },
    "bidirectional_dense": {
        "shape": [1, 4, 3],
        "inference": "bidirectional",
        "likelihood": {"kind": "categorical", "bits": 2},
        "merge": "residual_normal",
        "top": "constant",
        "layers": [{"dim": 5, "hidden": [16]}, {"dim": 2, "hidden": [12]}],
    },
    "conv_bottom_up": {
        "shape": [1, 7, 5],
        "state": "markov",
        "layers": [
            {"channels": 2, "resolution": 4, "width": 4},
            {"channels": 2, "resolution": 2, "width": 6, "repeat": 2},
        ],
    },
    "conv_ladder_dense_top": {
        "shape": [3, 6, 6],
        "inference": "ladder",
        "top": "constant",
        "activation": "silu",
        "likelihood": {"kind": "logistic_mixture", "mixtures": 2},
        "layers": [
            {"channels": 2, "resolution": 6, "width": 4, "merge": "residual_normal"},
            {"channels": 2, "resolution": 3, "width": 6, "blocks": 2, "repeat": 2},
            {"dim": 3, "hidden": [12]},
        ],
    },
    "conv_bidirectional_1d": {
        "shape": [2, 15],
        "inference": "bidirectional",
        "likelihood": "gaussian",
        "layers": [
            {"channels": 3, "resolution": 8, "width": 4, "merge": "precision_weighted"},
            {"channels": 2, "resolution": 4, "width": 4},
        ],
    },
    "conv_ladder_3d": {
        "shape": [1, 3, 4, 4],
        "inference": "ladder",
        "state": "skip",
        "likelihood": {"kind": "logistic", "bits": 5},
        "layers": [
            {"channels": 2, "resolution": [3, 4, 4], "width": 3},
            {"channels": 1, "resolution": [1, 2, 2], "width": 3, "blocks": 0},
        ],
    },
}


def scales(*sizes: int) -> list[dict[str, int]]:
    """A small plan of a very deep VAE: two layers below, one at the top, wider going up."""
    return [
        {"resolution": size, "layers": 2 - i // 2, "encoder_blocks": 2, "width": 8 + 4 * i}
        for i, size in enumerate(sizes)
    ]


CELLS = ("preprocess_cells", "postprocess_cells", "encoder_cells", "decoder_cells")

# What the TensorFlow original of BIVA has otherwise.
PYTORCH = {
    "input_activation": "residual",
    "shortcut": "cropped",
    "merge_kernel": 3,
    "top_order": "bu_td",
    "initial_variance": "unbiased",
}

# Published models with all their parts, but narrow.
NARROW: dict[str, dict[str, Any]] = {
    "lvae_conv_mnist": {
        "filters": 8,
        "blocks_per_layer": 2,
        "layers": [{"channels": 4, "downsample": 1, "repeat": 3}],
    },
    **{
        name: {"layers": [{"dim": 6 - i, "hidden": 24 - 4 * i} for i in range(depth)]}
        for name, depth in [
            ("lvae_mnist", 5),
            ("lvae_mnist_unshared", 5),
            ("lvae_mnist_3layer", 3),
            ("vae_mnist_3layer", 3),
        ]
    },
    **{
        name: {"shape": [3, sizes[0], sizes[0]], "width": 8, "zdim": 2}
        | {"scales": scales(*sizes)}
        for name, sizes in [
            ("vdvae_cifar10", [8, 4, 1]),
            ("vdvae_imagenet32", [4, 2, 1]),
            ("vdvae_imagenet64", [8, 4]),
            ("vdvae_ffhq256", [6, 3, 1]),
            ("vdvae_ffhq1024", [12, 4]),
        ]
    },
    **{
        name: {"shape": [channels, size, size], "groups": groups, "channels": 4, "zdim": 2}
        | {"blocks": 1, "pad": pad, **dict.fromkeys(CELLS, 1)}
        for name, channels, size, pad, groups in [
            ("nvae_mnist", 1, 4, 2, [1, 1]),
            ("nvae_cifar10", 3, 4, 0, [2]),
            ("nvae_celeba64", 3, 8, 0, [1, 1, 1]),
            ("nvae_imagenet32", 3, 4, 0, [2]),
            ("nvae_celebahq256", 3, 4, 0, [1, 1]),
            ("nvae_ffhq256", 3, 4, 0, [1, 1]),
        ]
    },
    **{
        f"biva_{name}{variant}": {"shape": shape, "filters": 4, "blocks": 1, "layers": layers}
        | alike
        for name, shape, layers in [
            ("mnist", [1, 6, 6], [{"dim": 3, "kernel": 5, "stride": 2}, {"dim": 2}]),
            (
                "cifar10",
                [3, 4, 4],
                [{"channels": 2, "latent_kernel": 2, "stride": 2}, {"channels": 2}],
            ),
        ]
        for variant, alike in [
            ("", {}),
            ("_ladder", {} if name == "mnist" else {"inference": "bidirectional"}),
            ("_bottom_up", {} if name == "mnist" else {"inference": "bidirectional"}),
            ("_log_variance", {"scale": "softplus_log_variance"}),
            ("_tensorflow", {} if name == "mnist" else PYTORCH),
        ]
    },
}


def lives() -> list[str]:
    """Every model; of presets that are the same when narrow, the first."""
    sections = {name: build_model(name, **NARROW.get(name, {})).config for name in list_presets()}
    first: dict[str, str] = {}
    for name, section in sections.items():
        first.setdefault(section.model_dump_json(), name)
    return [*TINY, *first.values()]


def make(name: str) -> HierarchicalVAE:
    if name in TINY:
        return build_model(config={"system": "hierarchy", **TINY[name]})
    return build_model(name, **NARROW.get(name, {}))


NAMES = lives()
every_model = pytest.mark.parametrize("name", NAMES)


def data(model: HierarchicalVAE, n: int = B) -> Tensor:
    return torch.rand(n, *model.config.shape)


def values(outcome: tuple[Any, dict[str, Latent]]) -> dict[str, Tensor]:
    """Everything that a pass returns, flat."""
    px, latents = outcome
    flat = {"px.mean": px.mean}
    for name, latent in latents.items():
        flat |= {f"{name}.z": latent.z, f"{name}.p.mean": latent.p.mean}
        flat[f"{name}.p.log_scale"] = latent.p.log_scale
        if latent.q is not None and latent.kl is not None:
            flat |= {f"{name}.q.mean": latent.q.mean, f"{name}.kl": latent.kl}
            flat[f"{name}.q.log_scale"] = latent.q.log_scale
    return flat


def seeded(seed: int, call: Callable[..., Any], *arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return values(call(*arguments))


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


@every_model
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name).eval()  # in training a bias before batch norm gets rounding only
    with torch.no_grad():  # weights that are zero at first hide what is behind them
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, SqueezeExcitation):
                module.first.bias.abs_()  # or its few rectifiers might all be off
    x = data(model)
    elbo(*model(x), x).loss.backward()
    frozen = {path for path, parameter in model.named_parameters() if not parameter.requires_grad}
    if getattr(model.config, "inference", "") == "bottom_up" and model.config.system == "biva":
        # What the released code has and nothing reads, where the top z is dense.
        assert frozen <= {f"bottom_up.rungs.z2.widen.0.{name}" for name in ("v", "g", "bias")}
    else:
        assert not frozen
    for path, parameter in model.named_parameters():
        if path in frozen:
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path


@every_model
def test_layers_are_named_from_the_top(name: str) -> None:
    model = make(name)
    latents = model(data(model))[1]
    names = [f"z{i}" for i in range(len(latents), 0, -1)]
    assert list(latents) == names == list(model.top_down.layers)
    assert list(model.decode(2)[1]) == names
    assert list(elbo(*model(data(model)), data(model)).kl) == names


@every_model
def test_latents_are_records_of_one_shape(name: str) -> None:
    model = make(name)
    px, latents = model(data(model))
    assert px.mean.shape == (B, *model.config.shape)
    assert per_datum(px.log_prob(data(model))).shape == (B,)
    for latent in latents.values():
        assert isinstance(latent, Latent)
        assert isinstance(latent.p, Normal)
        assert latent.q is not None
        assert latent.kl is not None
        tensors = [latent.p.mean, latent.p.log_scale, latent.q.mean, latent.q.log_scale]
        assert all(t.shape == latent.z.shape for t in [*tensors, latent.kl])
        assert latent.z.shape[0] == B


@every_model
def test_a_seed_reproduces(name: str) -> None:
    model = make(name)
    x = data(model)
    assert_same(seeded(1, model, x), seeded(1, model, x))
    assert_same(seeded(1, model.decode, 3), seeded(1, model.decode, 3))
    assert not torch.equal(seeded(1, model, x)["z1.z"], seeded(2, model, x)["z1.z"])


@every_model
def test_initialisation_is_the_seed_s(name: str) -> None:
    torch.manual_seed(1)
    one, other = make(name).state_dict(), make(name).state_dict()
    torch.manual_seed(1)
    again = make(name).state_dict()
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@every_model
def test_weights_carry_the_whole_model(name: str) -> None:
    model, other = make(name), make(name)
    x = data(model)
    other.load_state_dict(model.state_dict())
    assert_same(seeded(1, model, x), seeded(1, other, x))
    assert_same(seeded(1, model, x), seeded(1, copy.deepcopy(model), x))


@every_model
def test_saving_and_loading_keeps_every_bit(name: str, tmp_path: Path) -> None:
    model = make(name)
    loaded = from_pretrained(save_pretrained(model, tmp_path / "saved"))
    assert loaded.config == model.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    for key, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight)
    x = data(model)
    assert_same(seeded(1, model.eval(), x), seeded(1, loaded, x))


@every_model
def test_decoding_every_latent_is_the_forward_pass(name: str) -> None:
    model = make(name).eval()
    px, latents = model(data(model))
    given = {key: latent.z for key, latent in latents.items()}
    again, decoded = model.decode(B, given)
    assert torch.equal(px.mean, again.mean)
    for key, latent in decoded.items():
        assert latent.z is given[key]
        assert torch.equal(latent.p.mean, latents[key].p.mean)
        assert torch.equal(latent.p.log_scale, latents[key].p.log_scale)
        assert latent.q is None
        assert latent.kl is None


@every_model
def test_decoding_the_top_draws_the_rest(name: str) -> None:
    model = make(name)
    top, *rest = model.top_down.layers
    z = model(data(model))[1][top].z
    one, two = seeded(1, model.decode, B, {top: z}), seeded(2, model.decode, B, {top: z})
    assert torch.equal(one[f"{top}.z"], z)
    assert torch.equal(two[f"{top}.z"], z)
    assert all(not torch.equal(one[f"{key}.z"], two[f"{key}.z"]) for key in rest)


@every_model
def test_temperature_zero_is_deterministic(name: str) -> None:
    model = make(name).eval()
    one, two = seeded(1, model.decode, B, {}, 0.0), seeded(2, model.decode, B, {}, 0.0)
    assert_same(one, two)
    for key in model.top_down.layers:
        assert torch.equal(one[f"{key}.z"], one[f"{key}.p.mean"])
    as_tensor = seeded(3, model.decode, B, {}, torch.tensor(0.0))
    assert_same(one, as_tensor)


@every_model
def test_kl_is_what_its_posterior_says(name: str) -> None:
    model = make(name)
    for latent in model(data(model))[1].values():
        assert latent.q is not None
        assert latent.kl is not None
        if isinstance(latent.q, Joined):
            p_td, p_bu = (
                Normal(*half) for half in zip(*map(latent.q.parts, latent.p), strict=True)
            )
            td, bu = latent.q.parts(latent.z)
            down = latent.q.td.kl(p_td, td)
            if not isinstance(latent.q.td, Sampled):
                assert (down >= -ROUNDING).all()
            torch.testing.assert_close(
                latent.kl, torch.cat([down, latent.q.bu.kl(p_bu, bu)], dim=1), rtol=0, atol=0
            )
        elif isinstance(latent.q, Normal | ClosedDrawn) and not isinstance(latent.q, Sampled):
            assert (latent.kl >= -ROUNDING).all()
            q = latent.q if isinstance(latent.q, Normal) else latent.q.normal
            assert torch.equal(latent.kl, q.kl(latent.p, latent.z))
        else:
            assert isinstance(latent.q, Drawn | Sampled)
            ratio = latent.q.log_prob(latent.z) - latent.p.log_prob(latent.z)
            assert torch.equal(latent.kl, ratio)


@every_model
@torch.no_grad()
def test_iw_bound_is_at_least_the_mean_log_weight(name: str) -> None:
    model = make(name).double()
    x, samples = data(model, 3).double(), 20
    torch.manual_seed(1)
    bound = iw_elbo(model, x, samples)
    torch.manual_seed(1)
    single = iw_elbo(model, torch.cat([x] * samples), 1).view(samples, 3)
    assert (bound >= single.mean(dim=0)).all()  # Jensen, draw for draw
    assert (bound <= single.max(dim=0).values).all()


@every_model
def test_compiles_without_a_break_to_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = make(name)
    x = data(model)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    for seed in (1, 2):
        assert_same(seeded(seed, compiled, x), seeded(seed, model, x))
    assert len(graphs) == 1
    for key, latent in compiled(x)[1].items():
        assert type(latent.q) is type(model(x)[1][key].q)


@every_model
def test_the_loss_compiles_with_its_gradients(name: str) -> None:
    torch._dynamo.reset()
    model = make(name)
    x, beta = data(model), torch.tensor(0.5)

    def loss(x: Tensor, beta: Tensor) -> Tensor:
        return elbo(*model(x), x, beta).loss

    compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)
    gradients = []
    for call in (loss, compiled):
        torch.manual_seed(1)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(call(x, beta), trained))
    torch.testing.assert_close(gradients[0], gradients[1])


@every_model
def test_decoding_compiles_without_a_break(name: str) -> None:
    torch._dynamo.reset()
    model = make(name)

    def decode(temperature: Tensor) -> tuple[Any, dict[str, Latent]]:
        return model.decode(4, temperature=temperature)

    compiled = torch.compile(decode, backend="eager", fullgraph=True, dynamic=False)
    for temperature in (torch.tensor(0.7), torch.tensor(0.0)):
        assert_same(seeded(1, compiled, temperature), seeded(1, decode, temperature))


DEEP = {
    "bottom_up": {"layer": {"dim": 4, "hidden": [8]}},
    "ladder": {"layer": {"dim": 4, "hidden": [8]}},
    "bidirectional": {"layer": {"dim": 4, "hidden": [8]}},
    "conv bottom_up": {"layer": {"channels": 2, "resolution": 4, "width": 4}},
    "conv ladder": {"layer": {"channels": 2, "resolution": 4, "width": 4}},
    "conv bidirectional": {"layer": {"channels": 2, "resolution": 4, "width": 4}},
}


@pytest.mark.parametrize("kind", DEEP)
@torch.no_grad()
def test_graphs_do_not_grow_with_the_number_of_layers(kind: str) -> None:
    counts = []
    for repeat in (5, 50):
        torch._dynamo.reset()
        layers = [{**DEEP[kind]["layer"], "repeat": repeat}]
        model = build_model(
            config={
                "system": "hierarchy",
                "shape": [1, 4, 4],
                "inference": kind.split()[-1],
                "layers": layers,
            }
        )
        graphs: list[torch.fx.GraphModule] = []

        def backend(
            graph: torch.fx.GraphModule, _: list[Tensor], seen: list[Any] = graphs
        ) -> Callable[..., Any]:
            seen.append(graph)
            return graph.forward

        for part in [*model.bottom_up.rungs.values(), *model.top_down.layers.values()]:
            part.compile(backend=backend, fullgraph=True, dynamic=False)
        model(data(model))
        counts.append(len(graphs))
    # The lowest rung reads the data and the top layer has no layer above it: two kinds of each.
    assert counts[0] == counts[1] <= 5


@every_model
def test_distributions_are_float32_under_autocast(name: str) -> None:
    model = make(name)
    x = data(model)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = model(x)
        generated = model.decode(2)
    for key, value in {**values(outcome), **values(generated)}.items():
        assert value.dtype == torch.float32, key
    terms = elbo(*outcome, x)
    assert terms.loss.dtype == terms.elbo.dtype == torch.float32
    torch.manual_seed(1)
    full = elbo(*model(x), x)
    torch.testing.assert_close(terms.log_px, full.log_px, rtol=0.05, atol=0.5)  # 8 bits
    terms.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@every_model
def test_float64_stays_float64(name: str) -> None:
    model = make(name).double()
    x = data(model).double()
    for outcome in (model(x), model.decode(2), model.decode(2, temperature=0.5)):
        assert all(value.dtype == torch.float64 for value in values(outcome).values())
    terms = elbo(*model(x), x, torch.tensor(0.5))
    assert terms.loss.dtype == terms.elbo.dtype == torch.float64
    assert iw_elbo(model, x, 2).dtype == torch.float64


@every_model
def test_float32_and_float64_agree(name: str) -> None:
    model = make(name).eval()
    x = data(model)
    px, latents = model(x)
    given = {key: latent.z for key, latent in latents.items()}
    double = model.double().decode(B, {key: z.double() for key, z in given.items()})[0]
    torch.testing.assert_close(px.mean.double(), double.mean, rtol=1e-4, atol=1e-5)


@every_model
def test_builds_and_runs_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = make(name)
    assert all(t.device.type == "meta" for t in [*model.parameters(), *model.buffers()])
    px, _ = model(torch.empty(2, *model.config.shape, device="meta"))
    assert px.mean.shape == (2, *model.config.shape)
    assert px.mean.device.type == "meta"


@every_model
def test_a_model_knows_its_configuration(name: str) -> None:
    model = make(name)
    again = build_model(config=model.config)
    shapes = {key: weight.shape for key, weight in model.state_dict().items()}
    assert shapes == {key: weight.shape for key, weight in again.state_dict().items()}


@every_model
def test_the_mode_changes_nothing_that_is_not_random(name: str) -> None:
    model = make(name)
    x = data(model)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout | nn.Dropout2d):
            module.eval()  # whose statistics and draws are what its mode is about
    assert_same(seeded(1, model, x), seeded(1, model.eval(), x))


@every_model
@torch.no_grad()
def test_data_do_not_leak_into_each_other(name: str) -> None:
    model = make(name).double().eval()
    x = data(model).double()
    latents = model(x)[1]
    given = {key: latent.z for key, latent in latents.items()}
    alone = model.decode(1, {key: z[2:3] for key, z in given.items()})[0]
    torch.testing.assert_close(model.decode(B, given)[0].mean[2:3], alone.mean)


@pytest.mark.parametrize("scale", ["log_variance", "log_scale", "softplus_variance"])
def test_scales_mean_what_they_say(scale: str) -> None:
    model = build_model(
        config={"system": "hierarchy", "shape": [2], "scale": scale, "layers": [{"dim": 2}]}
    ).double()
    net = model.bottom_up.rungs["z1"].posterior.net
    raw = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.cat([torch.tensor([0.5, -0.5], dtype=torch.float64), raw]))
    q = model(torch.zeros(1, 2, dtype=torch.float64))[1]["z1"].q
    variance = {
        "log_variance": raw.exp(),
        "log_scale": (2.0 * raw).exp(),
        "softplus_variance": (1.0 + raw.exp()).log(),
    }[scale]
    torch.testing.assert_close(q.log_scale.exp().square()[0], variance)
    assert q.mean.tolist() == [[0.5, -0.5]]
