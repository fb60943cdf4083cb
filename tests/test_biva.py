"""BIVA: published sizes, numbers of the released code, and a second implementation beside ours."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import biva_reference as reference
import numpy as np
import pytest
import torch
from torch import Tensor

from ladder.build import build_model, resolve
from ladder.config import DataConfig, FreeBits, ObjectiveConfig, TrainConfig
from ladder.distributions import Drawn, Joined, Sampled
from ladder.errors import UserError
from ladder.execution import compile_layers
from ladder.latent import variables
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, per_datum
from ladder.systems import biva
from ladder.systems.biva.normed import ConvUp, Normed
from ladder.train.state import new_state

RELEASED = json.loads((Path(__file__).parent / "biva_released.json").read_text(encoding="utf-8"))
RECORDED: dict[str, dict[str, Any]] = RELEASED["configurations"]
INFERENCE = {"BIVA": "bidirectional", "LVAE": "ladder", "VAE": "bottom_up"}
SCALES = {
    "softplus": "softplus_log_variance",
    "none": "log_variance",
    "tanh": "tanh_log_variance",
}
FREE_BITS = FreeBits(nats=2.0, per="variable", average="sample")


def section(config: dict[str, Any]) -> dict[str, Any]:
    """Our model section for a recorded configuration."""
    layers = []
    for blocks, latent in zip(config["stages"], config["latents"], strict=True):
        layer = {"kernel": [block[1] for block in blocks], "stride": blocks[-1][2]}
        if "kernel" in latent:
            layer |= {"channels": latent["N"], "latent_kernel": latent["kernel"]}
        else:
            layer |= {"dim": latent["N"]}
        layers.append(layer)
    options, colour = config.get("options", {}), config["shape"][0] == 3
    padded = options.get("padded_shp", config["shape"][1:])
    return {
        "system": "biva",
        "shape": config["shape"],
        "layers": layers,
        "filters": config["stages"][0][0][0],
        "blocks": len(config["stages"][0]),
        "inference": INFERENCE[config["stage"]],
        "scale": SCALES[options.get("log_var_act", "softplus")],
        "conditional_bu": options.get("conditional_bu", False),
        "skip": not options.get("no_skip", False),
        "learn_top_prior": options.get("learn_prior", False),
        "pad": (padded[0] - config["shape"][1]) // 2,
        "centre": colour or "lambda_init" in options,
        "likelihood": {"kind": "logistic_mixture", "bins": "pixelcnn"} if colour else "bernoulli",
    }


def plan(config: dict[str, Any], **changes: Any) -> reference.Plan:
    """The plan of the second implementation for a recorded configuration."""
    options = config.get("options", {})
    size = options.get("padded_shp", config["shape"][1:])
    latents = [
        reference.Latent(v["N"], "kernel" not in v, v.get("kernel", 3)) for v in config["latents"]
    ]
    return reference.Plan(
        config["stage"],
        config["stages"],
        latents,
        (config["shape"][0], *size),
        100 if config["shape"][0] == 3 else 1,
        conditional_bu=options.get("conditional_bu", False),
        no_skip=options.get("no_skip", False),
        scale=options.get("log_var_act", "softplus"),
        **changes,
    )


def filled(config: dict[str, Any]) -> dict[str, Tensor]:
    """A released state dict with the weights of the rule."""
    state = reference.fill(reference.shapes(plan(config)))
    for key in state:
        if key.endswith(".prior"):
            state[key] = config.get("prior_fill", 0.0) * values(
                zlib.crc32(key.encode()), state[key].shape
            )
    return state


def values(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers of a seed, in single precision."""
    drawn = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(drawn).double()


def images(shape: list[int], n: int = 2) -> Tensor:
    """The images of the recorded numbers, in [0, 1]."""
    levels = 2 if shape[0] == 1 else 256
    drawn = np.random.RandomState(7).randint(0, levels, (n, *shape)) / (levels - 1)
    return torch.from_numpy(drawn)


def loaded(config: dict[str, Any], state: dict[str, Tensor]) -> HierarchicalVAE:
    """Our model with a released state dict, in double precision."""
    model = build_model(config=section(config)).double().eval()
    model.load_state_dict(biva.convert_released(state, model.config))
    return model


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[int]]]:
    """Let the j-th draw be that of the seed `base` + j; return the list of shapes drawn."""

    def begin(base: int) -> list[list[int]]:
        shapes: list[list[int]] = []

        def noise(like: Tensor, **_: Any) -> Tensor:
            shapes.append(list(like.shape))
            return values(base + len(shapes) - 1, tuple(like.shape)).to(like)

        monkeypatch.setattr(torch, "randn_like", noise)
        return shapes

    return begin


def sums(tensor: Tensor) -> list[float]:
    return [tensor.sum().item(), tensor.abs().sum().item()]


def features(model: HierarchicalVAE, state: Any) -> Tensor:
    """Raw parameters of p(x|z), cropped."""
    return model.likelihood.crop(model.likelihood.conv(state))


def kls(latents: dict[str, Any]) -> list[list[float]]:
    """KL of every variable and datum, from the data up, the one drawn going up first."""
    found = []
    for latent in reversed(latents.values()):
        parts = reversed(variables(latent.q, latent.kl))
        found += [per_datum(part).tolist() for part in parts]
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_numbers_of_the_released_code(name: str, draws: Callable[[int], list[list[int]]]) -> None:
    expected = RECORDED[name]
    state = filled(expected["config"])
    lines = "\n".join(sorted(f"{key} {list(value.shape)}" for key, value in state.items()))
    assert len(state) == expected["entries"]
    assert zlib.crc32(lines.encode()) == expected["keys_crc32"]
    model = loaded(expected["config"], state)
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    x = images(expected["config"]["shape"])
    drawn = draws(1000)
    raw, latents = model.top_down(2, model.bottom_up(x))
    assert drawn == expected["draws"]
    assert sums(features(model, raw)) == pytest.approx(expected["logits"], rel=1e-7)
    terms = elbo(model.likelihood(raw), latents, x, free_bits=FREE_BITS)
    for ours, theirs in zip(kls(latents), expected["kl"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert (-terms.log_px).tolist() == pytest.approx(expected["nll"], rel=1e-7)
    assert terms.elbo.tolist() == pytest.approx(expected["elbo"], rel=1e-7)
    assert terms.loss.item() == pytest.approx(expected["loss"], rel=1e-7)
    drawn = draws(2000)
    raw, _ = model.top_down(2)
    assert drawn == expected["prior_draws"]
    assert sums(features(model, raw)) == pytest.approx(expected["prior_logits"], rel=1e-7)


@pytest.mark.parametrize(
    ("preset", "inference", "count"),
    [
        ("biva_mnist", "bidirectional", 31_550_946),
        ("biva_mnist", "ladder", 16_524_450),
        ("biva_mnist", "bottom_up", 17_804_706),
        ("biva_cifar10", "bidirectional", 102_948_560),
        ("biva_cifar10", "ladder", 59_576_896),
        ("biva_cifar10", "bottom_up", 54_402_880),
    ],
)
def test_published_counts_and_layouts(preset: str, inference: str, count: int) -> None:
    named = preset if inference == "bidirectional" else f"{preset}_{inference}"
    with torch.device("meta"):
        model = build_model(named)
    assert resolve(preset, [f"model.inference={inference}"]).model == model.config
    assert sum(p.numel() for p in model.parameters()) == count
    if named in ("biva_cifar10_ladder", "biva_cifar10_bottom_up"):
        return  # slow, and what their layouts have is in the others'
    stage = next(stage for stage, word in INFERENCE.items() if word == inference)
    published = getattr(reference, preset.removeprefix("biva_"))(stage)
    released = {
        key: torch.empty(shape, device="meta") if shape else torch.tensor(True)
        for key, shape in reference.shapes(published).items()
    }
    assert list(biva.convert_released(released, model.config)) == list(model.state_dict())


def test_published_recipes() -> None:
    free_bits = {"nats": 2.0, "per": "variable", "average": "sample"}
    train = {
        "epochs": 500,
        "batch_size": 48,
        "optimizer": "adamax",
        "lr": 2e-3,
        "lr_decay": {"kind": "exponential", "rate": 0.999999, "least": 1e-4},
        "ema": 0.9995,
    }
    data = {"mnist": {"name": "mnist", "binarize": "static"}, "cifar10": {"name": "cifar10"}}
    dropout = {"mnist": (0.5, 0.5), "cifar10": (0.2, 0.0)}
    for name in ("mnist", "cifar10"):
        config = resolve(f"biva_{name}")
        assert config.objective == ObjectiveConfig(free_bits=free_bits)
        assert config.train == TrainConfig(**train)
        assert config.data == DataConfig(**data[name])
        assert (config.model.q_dropout, config.model.p_dropout) == dropout[name]
    assert resolve("biva_cifar10").model.likelihood.bins == "pixelcnn"


@pytest.mark.parametrize("name", ["biva_mnist", "biva_cifar10"])
def test_variants_differ_in_what_they_are_named_for(name: str) -> None:
    config = resolve(name)
    original = {"epochs": 10000, "bias_correction": False}
    original |= {"batch_size": 32} if name == "biva_mnist" else {}
    model, train = config.model, config.train
    for variant, changes, recipe in [
        ("ladder", {"inference": "ladder"}, {}),
        ("bottom_up", {"inference": "bottom_up"}, {}),
        ("log_variance", {"scale": "log_variance"}, {}),
        ("tensorflow", TENSORFLOW, original),
    ]:
        other = {
            "preset": f"{name}_{variant}",
            "model": model.model_copy(update=changes),
            "train": train.model_copy(update=recipe),
        }
        assert resolve(f"{name}_{variant}") == config.model_copy(update=other)


# What the TensorFlow original does otherwise: its names in the second implementation, and ours.
DIFFERENCES: dict[str, dict[str, Any]] = {
    reference.ACTIVATION: {"input_activation": "every"},
    reference.CONCAT: {"top_order": "td_bu"},
    reference.MERGE: {"merge_kernel": "above"},
}
SHORTCUT = {reference.NARROWER, reference.WIDER, reference.POOL}
TENSORFLOW: dict[str, Any] = {
    **{key: value for said in DIFFERENCES.values() for key, value in said.items()},
    "shortcut": "padded",
    "initial_variance": "biased",
}
# Of their kernels the first of the third layer differs from the usual 3.
WIDE_ABOVE = {
    **RECORDED["BIVA_B"]["config"],
    "stages": [[[8, 5, 1], [8, 5, 2]], [[8, 3, 1], [8, 3, 1]], [[8, 5, 1], [8, 3, 2]]],
    "shape": [1, 32, 32],
}


@pytest.mark.parametrize(
    ("name", "stage"),
    [*((name, "BIVA") for name in [*DIFFERENCES, "shortcut"]), *(("all", s) for s in INFERENCE)],
)
def test_differences_of_the_tensorflow_original(
    name: str, stage: str, draws: Callable[[int], list[list[int]]]
) -> None:
    names = SHORTCUT if name == "shortcut" else {name}
    said: dict[str, Any] = (
        {"shortcut": "padded"} if name == "shortcut" else DIFFERENCES.get(name, {})
    )
    if name == "all":
        names, said = reference.TENSORFLOW, TENSORFLOW
    config = {**WIDE_ABOVE, "stage": stage}
    theirs = plan(config, tensorflow=True, differences=frozenset(names))
    state = reference.fill(reference.shapes(theirs))
    model = build_model(config={**section(config), **said}).double().eval()
    model.load_state_dict(biva.convert_released(state, model.config))
    x = images(config["shape"])
    draws(1000)
    raw, latents = model.top_down(2, model.bottom_up(x))
    seeds = iter(range(1000, 1100))
    logits, kl = reference.forward(theirs, state, x, lambda shape: values(next(seeds), shape))
    torch.testing.assert_close(features(model, raw), logits, rtol=1e-6, atol=1e-7)
    for ours, one in zip(kls(latents), kl, strict=True):
        assert ours == pytest.approx(one.tolist(), rel=1e-5, abs=1e-5)  # their floor of 1e-8
    if name in ("shortcut", reference.ACTIVATION, reference.CONCAT):
        plain = build_model(config=section(config)).double().eval()
        plain.load_state_dict(model.state_dict())
        draws(1000)
        assert not torch.allclose(
            features(plain, plain.top_down(2, plain.bottom_up(x))[0]), logits
        )


@pytest.mark.parametrize("name", ["BIVA_A", "BIVA_B"])
def test_data_dependent_initialisation(name: str, draws: Callable[[int], list[list[int]]]) -> None:
    expected, config = RELEASED["initialisation"][name], RECORDED[name]["config"]
    state = filled(config)
    for key, value in state.items():
        last = key.rpartition(".")[2]
        if last in ("initialized", "bias"):
            value.zero_()
        elif last == "weight_g":
            value.fill_(1.0)
    model = build_model(config=section(config)).double()
    trained = {k: torch.ones_like(v) if v.dtype == torch.bool else v for k, v in state.items()}
    model.load_state_dict(biva.convert_released(trained, model.config))
    for layer in normed(model):
        layer.initialised.zero_()
    drawn = draws(1000)
    biva.initialise(model, images(config["shape"], 4))
    assert drawn == expected["draws"]
    assert all(layer.initialised for layer in normed(model))
    ours = model.state_dict()
    theirs = {biva.released.released_name(key, model.config): value for key, value in ours.items()}
    norms = torch.cat([v.flatten() for k, v in theirs.items() if k.endswith("weight_g")])
    biases = torch.cat([v.flatten() for k, v in theirs.items() if k.endswith("bias")])
    assert sums(norms) == pytest.approx(expected["all_weight_g"], rel=1e-7)
    assert sums(biases) == pytest.approx(expected["all_bias"], rel=1e-6)
    for layer, numbers in expected["layers"].items():
        for kind, number in numbers.items():
            assert sums(theirs[f"{layer}.{kind}"]) == pytest.approx(number, rel=1e-6), layer


def normed(model: HierarchicalVAE) -> list[Normed]:
    return [m for m in model.modules() if isinstance(m, Normed)]


@pytest.mark.parametrize("variance", ["unbiased", "biased"])
@torch.no_grad()
def test_initialised_layers_have_no_mean_and_a_hundredth_of_spread(variance: str) -> None:
    torch.manual_seed(0)
    model = build_model("tiny_biva", initial_variance=variance).double()
    x = torch.rand(8, 1, 8, 8).double()
    found = {}

    def watch(layer: Normed, inputs: Any, output: Tensor) -> None:
        output = layer.whole(*inputs) if isinstance(layer, ConvUp) else output
        axes = [axis for axis in range(output.ndim) if axis != 1]
        found[layer] = torch.var_mean(output, axes, correction=int(variance == "unbiased"))

    for layer in normed(model):
        layer.register_forward_hook(watch)
    torch.manual_seed(1)
    biva.initialise(model, x)
    torch.manual_seed(1)
    model(x)
    for layer, (spread, mean) in found.items():
        assert mean.abs().max() < 1e-9
        before = spread / layer.g.flatten().square()  # with norms of one
        floor = 1e-8 if variance == "unbiased" else 1e-10
        torch.testing.assert_close(spread, 1e-4 * before / (before + floor))


def test_initialisation_is_done_once_and_saved() -> None:
    torch.manual_seed(0)
    model, x = build_model("tiny_biva"), torch.rand(4, 1, 8, 8)
    biva.initialise(model, x)
    once = {key: value.clone() for key, value in model.state_dict().items()}
    biva.initialise(model, torch.rand(1, 1, 8, 8))
    assert all(torch.equal(once[key], value) for key, value in model.state_dict().items())
    other = build_model("tiny_biva")
    other.load_state_dict(once)
    biva.initialise(other, torch.rand(5, 1, 8, 8))
    assert all(torch.equal(once[key], value) for key, value in other.state_dict().items())


def test_initialisation_needs_a_spread() -> None:
    with pytest.raises(UserError, match="initialise: needs at least 2 data, not 1"):
        biva.initialise(build_model("tiny_biva"), torch.rand(1, 1, 8, 8))
    with pytest.raises(UserError, match="initialise: x holds NaN"):
        biva.initialise(build_model("tiny_biva"), torch.full((4, 1, 8, 8), torch.nan))


def test_training_initialises_before_it_averages() -> None:
    config = resolve("tiny_biva")
    state = new_state(config, torch.device("cpu"), first=torch.rand(8, 1, 8, 8))
    assert all(layer.initialised for layer in normed(state.model))
    assert state.average is not None
    for weight, mean in zip(state.weights, state.average, strict=True):
        assert torch.equal(weight, mean)
    norms = [layer.g for layer in normed(state.model)]
    assert not any(torch.equal(g, torch.ones_like(g)) for g in norms)


@pytest.mark.parametrize("inference", INFERENCE.values())
@torch.no_grad()
def test_no_scale_is_below_one_as_published(inference: str) -> None:
    torch.manual_seed(0)
    below = {}
    for scale in SCALES.values():
        model = build_model("tiny_biva", inference=inference, scale=scale)
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        latents = model(torch.rand(4, 1, 8, 8))[1]
        given = [q for v in latents.values() for q in (v.p, v.q)]
        below[scale] = min(v.log_scale.min().item() for v in given)
    assert below["softplus_log_variance"] >= 0
    assert below["log_variance"] < -0.5
    assert -0.5 <= below["tanh_log_variance"] < 0


def test_posteriors_are_sampled_both_ways() -> None:
    latents = build_model("tiny_biva")(torch.rand(2, 1, 8, 8))[1]
    kinds = [type(latent.q) for latent in latents.values()]
    assert kinds == [Sampled, Joined, Joined]
    joined = latents["z1"].q
    assert isinstance(joined, Joined)
    assert type(joined.td) is Sampled
    assert type(joined.bu) is Drawn
    assert [list(v.z.shape[1:]) for v in latents.values()] == [[3], [8], [4, 4, 4]]


@torch.no_grad()
def test_a_conditional_prior_of_what_is_drawn_going_up() -> None:
    """p(z^BU | z^TD, d) follows z^TD, which p(z^BU | d) does not."""
    torch.manual_seed(0)
    for conditional in (False, True):
        model = build_model("tiny_biva", conditional_bu=conditional).eval()
        z = {name: latent.z for name, latent in model.decode(2)[1].items()}
        moved = {**z, "z2": torch.cat([z["z2"][:, :4] + 1.0, z["z2"][:, 4:]], dim=1)}
        before, after = (model.decode(2, given)[1]["z2"].p.mean for given in (z, moved))
        assert torch.equal(before[:, :4], after[:, :4])
        assert torch.equal(before[:, 4:], after[:, 4:]) is not conditional


def test_dropout_is_where_it_was() -> None:
    model = build_model("tiny_biva", q_dropout=0.25, p_dropout=0.5, conditional_bu=True)
    rates = {name: m.p for name, m in model.named_modules() if name.endswith("dropout")}
    going_up = [rate for name, rate in rates.items() if name.startswith("bottom_up")]
    going_down = [rate for name, rate in rates.items() if name.startswith("top_down")]
    assert set(going_up) == {0.25}
    assert set(going_down) == {0.5}
    assert len(going_up) == 3 * 2 * 2 + 1
    assert len(going_down) == 3 * 2 + 2 * 2


def test_a_learned_prior_is_learned() -> None:
    model = build_model("tiny_biva", learn_top_prior=True)
    x = torch.rand(4, 1, 8, 8)
    elbo(*model(x), x).loss.backward()
    assert model.top_down.start.value.grad.abs().sum() > 0


def test_weights_that_nothing_reads_are_not_trained() -> None:
    """The released bottom-up model has them, so they are counted and converted."""
    model = build_model("tiny_biva", inference="bottom_up")
    idle = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert idle == [f"bottom_up.rungs.z3.widen.0.{name}" for name in ("v", "g", "bias")]


def test_a_deeper_model_of_layers_that_are_alike_needs_no_further_graph() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    counts = []
    for depth in (3, 6):
        alike = {"channels": 3, "repeat": depth}
        layers = [{"channels": 2, "stride": 2}, alike, {"channels": 2, "stride": 2}]
        model = build_model("tiny_biva", layers=layers, blocks=1)
        compile_layers(model, backend)
        with torch.no_grad():
            model(torch.rand(2, 1, 8, 8))
        counts.append(len(graphs))
    assert 0 < counts[0] == counts[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": [64]}, "'shape' should be [channels, height, width], not [64]"),
        ({"layers": [{"stride": 2}]}, "give either 'dim' for a dense layer, or 'channels'"),
        (
            {"layers": [{"dim": 2, "channels": 2}]},
            "give either 'dim' for a dense layer, or 'channels'",
        ),
        ({"layers": [{"dim": 2, "latent_kernel": 3}]}, "'latent_kernel' is of convolutional"),
        (
            {"layers": [{"dim": 2, "kernel": 2, "stride": 3}]},
            "'kernel' is 2, less than 'stride', 3",
        ),
        ({"layers": [{"dim": 2, "kernel": [3]}]}, "'kernel' has 1 numbers, but 'blocks' is 2"),
        ({"inference": "ladder", "conditional_bu": True}, "'conditional_bu' is of bidirectional"),
        ({"merge_kernel": "abov"}, "should be a number or 'above', not 'abov'"),
        ({"inference": "both"}, "inference"),
        ({"q_dropout": 1.0}, "q_dropout"),
    ],
)
def test_mistakes(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model("tiny_biva", **changes)
    assert sentence in str(caught.value)


def test_released_files_are_taken_strictly() -> None:
    config = RECORDED["BIVA_A"]["config"]
    model, state = build_model(config=section(config)), filled(config)
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert list(biva.convert_released(wrapped, model.config)) == list(model.state_dict())
    missing = {k: v for k, v in state.items() if not k.startswith("stages.1.merge.conv1")}
    with pytest.raises(UserError, match=r"stages\.1\.merge"):
        biva.convert_released(missing, model.config)
    with pytest.raises(UserError, match="not of this configuration"):
        biva.convert_released({**state, "extra.weight": torch.zeros(1)}, model.config)
    new = {**state, "projection.1.initialized": torch.tensor(False)}
    with pytest.raises(UserError, match=r"'projection\.1\.initialized' is false"):
        biva.convert_released(new, model.config)
    dense = build_model("tiny_biva", conditional_bu=True).config
    with pytest.raises(UserError, match="no released layout is known for 'conditional_bu'"):
        biva.convert_released({}, dense)


@pytest.mark.parametrize(
    ("z", "sentence"),
    [
        ({"z2": torch.zeros(2, 9)}, r"given as \[2, 9\], but its prior has \[2, 8\]"),
        ({"z1": torch.zeros(2, 4, 3, 4)}, r"\[2, 4, 3, 4\], but its prior has \[2, 4, 4, 4\]"),
    ],
)
def test_a_given_latent_has_both_variables(z: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_model("tiny_biva").decode(2, z)
