"""The convolutional Ladder VAE: published numbers, the released layout, the first batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladder.build import build_model, list_systems, resolve
from ladder.config import FreeBits
from ladder.distributions import Normal, Sampled
from ladder.errors import UserError
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo
from ladder.pretrained import pointed, read_weights
from ladder.systems import lvae_conv
from ladder.train import fit, loop
from ladder.train.loop import set_up
from ladder.train.state import new_state

GOLDEN: dict[str, Any] = {
    "system": "lvae_conv",
    "shape": [1, 28, 28],
    "layers": [{"channels": 4, "downsample": 1, "repeat": 3}],
    "filters": 8,
    "blocks_per_layer": 2,
}
PLAIN = {"gated": False, "skip": False, "merge": "linear", "learn_top_prior": False}
UNEVEN = [
    {"channels": 2, "downsample": 2},
    {"channels": 3, "repeat": 2},
    {"channels": 1, "downsample": 1},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "golden": {},
    "ungated": {"gated": False},
    "no_skip": {"skip": False},
    "linear": {"merge": "linear"},
    "fixed_top": {"learn_top_prior": False},
    "no_initial_downscaling": {"initial_downscaling": False},
    "plain": {**PLAIN, "kl": "closed_form"},
    "uneven": {"layers": UNEVEN, "shape": [1, 20, 13]},
    "one_block": {"blocks_per_layer": 1, "block": "bacdbac"},
    "four_blocks": {"blocks_per_layer": 4, "block": "cabdcabd", "activation": "selu"},
    "colour": {"shape": [3, 16, 16], "likelihood": "logistic_mixture"},
    "one_layer": {"layers": [{"channels": 2}], "dropout": 0.0},
}
every_option = pytest.mark.parametrize("option", OPTIONS)


def make(option: str = "golden", **changes: Any) -> HierarchicalVAE:
    return build_model(config={**GOLDEN, **OPTIONS[option], **changes})


# --- the released layout, written down from its description --------------------------------------


def conv(prefix: str, shape: list[int], out: int | None = None) -> Iterator[tuple[str, list[int]]]:
    yield f"{prefix}.weight", shape
    yield f"{prefix}.bias", [shape[0] if out is None else out]


def block(prefix: str, config: Any, gated: bool) -> Iterator[tuple[str, list[int]]]:
    f = config.filters
    for i, letter in enumerate(config.block):
        if letter == "b":
            yield from conv(f"{prefix}.{i}", [f])
        elif letter == "c":
            yield from conv(f"{prefix}.{i}", [f, f, 3, 3])
    if gated:
        yield from conv(f"{prefix}.{len(config.block)}.conv", [2 * f, f, 1, 1])


def row(prefix: str, config: Any, halvings: int, first: int = 0) -> Iterator[Any]:
    f = config.filters
    for b in range(config.blocks_per_layer):
        if b < halvings:
            yield from conv(f"{prefix}.{b}.pre_conv", [f, f, 3, 3])
        yield from block(f"{prefix}.{first + b}.res.block", config, config.gated)


def merger(prefix: str, config: Any, linear: bool = False) -> Iterator[Any]:
    f = config.filters
    yield from conv(f"{prefix}.layer.0", [f, 2 * f, 1, 1])
    if not linear:
        yield from block(f"{prefix}.layer.1.block", config, True)


def top_down_layer(i: int, config: Any) -> Iterator[Any]:
    f, z = config.filters, config.stack[i].channels
    prefix, top = f"top_down_layers.{i}", i == len(config.stack) - 1
    if top:
        yield f"{prefix}.top_prior_params", [1, 2 * z, *top_extent(config)]
    yield from row(f"{prefix}.deterministic_block", config, config.stack[i].downsample)
    if not top:
        yield from conv(f"{prefix}.stochastic.conv_in_p", [2 * z, f, 3, 3])
    yield from conv(f"{prefix}.stochastic.conv_in_q", [2 * z, f, 3, 3])
    yield from conv(f"{prefix}.stochastic.conv_out", [f, z, 3, 3])
    if not top:
        yield from merger(f"{prefix}.merge", config, config.merge == "linear")
    if not top and config.skip:
        yield from merger(f"{prefix}.skip_connection_merger", config)


def top_extent(config: Any) -> list[int]:
    factor = 2 ** sum(layer.downsample for layer in config.stack)
    factor *= 2 if config.initial_downscaling else 1
    return [math.ceil(n / factor) for n in config.shape[1:]]


def released_parameters(config: Any) -> dict[str, list[int]]:
    """Names and shapes in the order of the released module's `named_parameters`."""
    f, channels = config.filters, config.shape[0]

    def walk() -> Iterator[Any]:
        yield from conv("first_bottom_up.0", [f, channels, 5, 5])
        yield from block("first_bottom_up.2.res.block", config, False)
        for i in range(len(config.stack)):
            yield from top_down_layer(i, config)
        for i, layer in enumerate(config.stack):
            yield from row(f"bottom_up_layers.{i}.net", config, layer.downsample)
        yield from row("final_top_down", config, 0, first=int(config.initial_downscaling))
        raw = 100 if config.likelihood.kind == "logistic_mixture" else channels
        yield from conv("likelihood.parameter_net", [raw, f, 3, 3])

    return dict(walk())


def released_state(config: Any) -> dict[str, Tensor]:
    """fill(0.2) by the parameters' order, and buffers as a new batch norm has them."""
    state = {}
    for k, (name, shape) in enumerate(released_parameters(config).items()):
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        state[name] = (0.2 * torch.sin(0.37 * i + 1.3 * k)).float().view(shape)
    for name in [n for n, w in state.items() if n.endswith(".weight") and w.ndim == 1]:
        norm = name.removesuffix(".weight")
        state[f"{norm}.running_mean"] = torch.zeros(config.filters)
        state[f"{norm}.running_var"] = torch.ones(config.filters)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state


def test_the_layout_has_the_published_size() -> None:
    config = make().config
    parameters = released_parameters(config)
    assert len(parameters) == 229
    assert sum(math.prod(shape) for shape in parameters.values()) == 33_561
    assert len(released_state(config)) == 343


@pytest.mark.parametrize(
    ("kl", "layers", "loss"),
    [
        ("sampled", [169.68677, 10.83807, 3.19859], 183.72343),
        ("closed_form", [179.88753, 31.11910, 3.56524], 214.57187),
    ],
)
@torch.no_grad()
def test_golden_numbers(kl: str, layers: list[float], loss: float, feed: Any) -> None:
    """The released module's numbers; its layer 0 is the bottom, our z1."""
    model = make(kl=kl).eval()
    state = released_state(model.config)
    model.load_state_dict(lvae_conv.convert_released(state, model.config))
    x = ((37 * torch.arange(2 * 28 * 28) + 11) % 256 > 127).float().view(2, 1, 28, 28)
    feed(torch.zeros(2, 4, n, n) for n in (2, 4, 8))
    terms = elbo(*model(x), x, free_bits=FreeBits(nats=0.5, per="layer", average="sample"))
    expected = torch.tensor([-920.82043, -917.00696])
    torch.testing.assert_close(terms.log_px, expected, rtol=1e-6, atol=0.0)
    for name, nats in zip(["z1", "z2", "z3"], layers, strict=True):
        assert terms.kl[name].mean().item() == pytest.approx(nats, rel=1e-5)
    assert (terms.loss + terms.log_px.mean()).item() == pytest.approx(loss, rel=1e-5)


@every_option
def test_conversion_is_a_bijection(option: str) -> None:
    model = make(option)
    state = released_state(model.config)
    converted = lvae_conv.convert_released(state, model.config)
    assert {id(tensor) for tensor in converted.values()} == {id(t) for t in state.values()}
    assert len(converted) == len(state)
    assert list(converted) == list(model.state_dict())
    model.load_state_dict(converted)  # strict: names and shapes
    learned = {n for n, _ in model.named_parameters()}
    theirs = {id(state[name]) for name in released_parameters(model.config)}
    assert model.config.learn_top_prior == ("top_down.start.value" in learned)
    assert {id(converted[n]) for n in learned | {"top_down.start.value"}} == theirs


def test_parallel_training_s_prefix_is_taken_off() -> None:
    config = make().config
    state = released_state(config)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    converted = lvae_conv.convert_released(wrapped, config)
    assert all(a is b for a, b in zip(converted.values(), _plain(state, config), strict=True))


def _plain(state: dict[str, Tensor], config: Any) -> list[Tensor]:
    return list(lvae_conv.convert_released(state, config).values())


def test_a_state_that_does_not_fit_is_listed_by_layer() -> None:
    config = make().config
    state = released_state(config)
    del state["top_down_layers.2.top_prior_params"]
    state["bottom_up_layers.1.net.0.pre_conv.weight"] = torch.zeros(8, 4, 3, 3)
    state["likelihood.extra"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        lvae_conv.convert_released(state, config)
    assert str(caught.value).splitlines()[1:] == [
        "  bottom_up_layers.1: net.0.pre_conv.weight 8x4x3x3, not 8x8x3x3",
        "  likelihood: extra unexpected",
        "  top_down_layers.2: top_prior_params missing",
    ]


@pytest.mark.parametrize("option", ["ungated", "no_skip", "linear", "one_block", "uneven"])
def test_another_model_s_state_is_refused(option: str) -> None:
    state = released_state(make().config)
    with pytest.raises(UserError, match="not of this configuration") as caught:
        lvae_conv.convert_released(state, make(option).config)
    assert len(str(caught.value).splitlines()) <= 10


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(UserError, match="batch_norm: false"):
        lvae_conv.convert_released({}, make(batch_norm=False).config)
    with pytest.raises(UserError, match="choose from bernoulli, logistic_mixture"):
        lvae_conv.convert_released({}, make(likelihood="gaussian").config)


# --- the published models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "depth", "halvings", "parameters"),
    [
        ([1, 28, 28], 3, 3, 3_209_153),
        ([1, 28, 28], 6, 3, 6_008_705),
        ([1, 28, 28], 12, 3, 11_607_809),
        ([3, 32, 32], 15, 3, 14_467_684),
        ([3, 64, 64], 20, 4, 19_207_460),
    ],
)
def test_parameter_counts(shape: list[int], depth: int, halvings: int, parameters: int) -> None:
    """Where the halvings are spread changes nothing; that the top is 2 x 2 does."""
    halving = [i * halvings // depth != (i + 1) * halvings // depth for i in range(depth)]
    likelihood = "bernoulli" if shape[0] == 1 else "logistic_mixture"
    layers = [{"channels": 32, "downsample": int(h)} for h in halving]
    with torch.device("meta"):
        config = {"system": "lvae_conv", "shape": shape, "layers": layers}
        model = build_model(config=config, likelihood=likelihood)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.top_down.start.value.shape[2:] == (2, 2)


def test_the_preset_is_the_published_model() -> None:
    config = resolve("lvae_conv_mnist")
    with torch.device("meta"):
        model = build_model("lvae_conv_mnist")
    assert sum(p.numel() for p in model.parameters()) == 3_209_153
    assert config.objective.free_bits == FreeBits(nats=0.5, per="layer", average="sample")
    assert config.train.optimizer == "adamax"


# --- the model -----------------------------------------------------------------------------------


def test_it_is_a_built_in_system() -> None:
    assert "lvae_conv" in list_systems()


@every_option
@torch.no_grad()
def test_the_generative_path_is_the_training_path(option: str) -> None:
    model = make(option).eval()
    x = torch.rand(2, *model.config.shape).round()
    px, latents = model(x)
    depth = len(model.config.stack)
    assert list(latents) == [f"z{i}" for i in range(depth, 0, -1)]
    again, _ = model.decode(2, {name: latent.z for name, latent in latents.items()})
    assert torch.equal(px.mean, again.mean)
    assert px.log_prob(x).flatten(1).sum(1).isfinite().all()
    assert px.mean.shape == x.shape


@every_option
def test_everything_gets_a_gradient(option: str) -> None:
    model = make(option).train()
    x = torch.rand(4, *model.config.shape).round()
    elbo(*model(x), x).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_without_the_optional_parts_is_one_graph() -> None:
    """With them, test_systems.py compiles the tiny preset."""
    torch._dynamo.reset()
    layers = [{"channels": 2, "downsample": 1}, {"channels": 2}]
    small = {"shape": [1, 7, 6], "layers": layers, "blocks_per_layer": 1}
    model = make("plain", initial_downscaling=False, **small).train()
    x = torch.rand(4, 1, 7, 6).round()
    free_bits = FreeBits(nats=0.5, per="layer", average="sample")

    def loss(x: Tensor) -> Tensor:
        return elbo(*model(x), x, free_bits=free_bits).loss

    compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)
    found = []
    for call in (loss, compiled):
        torch.manual_seed(1)
        found.append(call(x))
    assert torch.equal(*found)


def test_resolutions_and_channels_follow_the_layers() -> None:
    latents = make("uneven").decode(2)[1]
    # 20 x 13 is padded to 32 x 16; the first convolution and z1 leave an eighth.
    sizes = {name: list(latent.z.shape[1:]) for name, latent in latents.items()}
    assert sizes == {"z4": [1, 2, 1], "z3": [3, 4, 2], "z2": [3, 4, 2], "z1": [2, 4, 2]}


@torch.no_grad()
def test_padding_is_zeros_around_the_data() -> None:
    small = make("uneven").eval()
    large = make("uneven", shape=[1, 32, 16]).eval()
    large.load_state_dict(small.state_dict())
    x = torch.rand(2, 1, 20, 13)
    framed = torch.zeros(2, 1, 32, 16)
    framed[:, :, 6:26, 1:14] = x
    ours, theirs = small.bottom_up(x), large.bottom_up(framed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("skip", [True, False])
@torch.no_grad()
def test_skip_decides_whether_data_see_the_upper_layers(skip: bool) -> None:
    model = make(skip=skip).eval()
    z = {name: latent.z for name, latent in model.decode(2)[1].items()}
    px, _ = model.decode(2, z)
    other, _ = model.decode(2, {**z, "z3": z["z3"] + 1.0})
    assert torch.equal(px.mean, other.mean) != skip


def test_the_top_prior_is_standard_at_first() -> None:
    for option in ("golden", "fixed_top"):
        model = make(option)
        p = model.decode(2)[1]["z3"].p
        assert not p.mean.any()
        assert not p.log_scale.any()
        assert isinstance(model.top_down.start.value, nn.Parameter) == (option == "golden")


@torch.no_grad()
def test_the_sampled_kl_has_the_mean_of_the_closed_form() -> None:
    q = Normal(torch.full((200_000,), 0.3).double(), torch.full((200_000,), -0.5).double())
    p = Normal(torch.zeros_like(q.mean), torch.full_like(q.mean, 0.2))
    z = Sampled(*q).rsample()
    sampled = Sampled(*q).kl(p, z)
    assert torch.equal(sampled, q.log_prob(z) - p.log_prob(z))
    error = sampled.std() / math.sqrt(len(z))
    assert (sampled.mean() - q.kl(p, z)[0]).abs() < 4.0 * error


def test_both_estimates_are_of_one_posterior() -> None:
    sampled, closed = make().eval(), make(kl="closed_form").eval()
    closed.load_state_dict(sampled.state_dict())
    x = torch.rand(2, 1, 28, 28)
    outcomes = []
    for model in (sampled, closed):
        torch.manual_seed(1)
        outcomes.append(model(x)[1])
    for name, latent in outcomes[0].items():
        other = outcomes[1][name]
        assert torch.equal(latent.z, other.z)
        assert torch.equal(latent.q.kl(latent.p, latent.z), latent.kl)
        assert torch.equal(Normal(*latent.q).kl(latent.p, latent.z), other.kl)


@pytest.mark.parametrize("block", ["bacdbacd", "bacdbac", "cabdcabd"])
def test_without_batch_norm_data_keep_to_themselves(block: str) -> None:
    model = make(batch_norm=False, dropout=0.0, block=block).train()
    x = torch.rand(3, 1, 28, 28)
    given = {name: latent.z for name, latent in model(x)[1].items()}
    alone = model.decode(1, {name: z[:1] for name, z in given.items()})[0]
    torch.testing.assert_close(model.decode(3, given)[0].mean[:1], alone.mean)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": [784]}, r"should be \[channels, height, width\], not \[784\]"),
        ({"layers": [{"downsample": 3}]}, r"layers\[0\]: 'downsample' is 3, but each of the 2"),
        ({"layers": []}, "needs at least 1 item"),
        ({"block": "bacd"}, "choose from bacdbac, bacdbacd, cabdcabd|did you mean 'bacdbac"),
        ({"dropout": 1.0}, "should be less than 1"),
        ({"kl": "analytic"}, "closed_form"),
        ({"layers": [{"dim": 3}]}, "no field 'dim'"),
    ],
)
def test_impossible_declarations(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(**changes)


# --- the first batch -----------------------------------------------------------------------------


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.Conv2d | nn.ConvTranspose2d
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def outputs(model: HierarchicalVAE, x: Tensor) -> dict[str, Tensor]:
    """What each convolution returns."""
    found: dict[str, Tensor] = {}
    for name, module in convolutions(model).items():
        module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
    model(x)
    return found


@pytest.mark.parametrize("option", ["golden", "plain", "uneven", "four_blocks"])
@torch.no_grad()
def test_after_initialisation_every_output_is_standardised(option: str) -> None:
    model = make(option).eval()
    x = torch.rand(16, *model.config.shape).round()
    before: list[Tensor] = []
    watch = model.register_forward_pre_hook(lambda *_: before.append(torch.get_rng_state()))
    lvae_conv.initialise(model, x)
    watch.remove()
    assert len(before) == 1  # one forward pass
    assert not model.training
    torch.set_rng_state(before[0])  # the same draws and dropped channels again
    found = outputs(model.train(), x)
    assert found.keys() == convolutions(model).keys()
    for name, y in found.items():
        mean, std = y.mean(dim=(0, 2, 3)), y.std(dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-4, msg=name)
        torch.testing.assert_close(std, torch.full_like(std, 0.1), rtol=0.01, atol=0.0, msg=name)


def test_initialisation_can_be_declined() -> None:
    model = make(data_dependent_init=False)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    lvae_conv.initialise(model, torch.rand(4, 1, 28, 28))
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())


def test_one_datum_has_no_spread() -> None:
    with pytest.raises(UserError, match="at least 2 data"):
        lvae_conv.initialise(make(), torch.rand(1, 1, 28, 28))


def tiny(*words: str) -> Any:
    quick = ("train.steps=6", "train.batch_size=32", "train.log_every=2", "train.device=cpu")
    return resolve("tiny_lvae_conv", [*quick, "train.checkpoint_every=4", *words])


def weights(run: Path) -> dict[str, Tensor]:
    last = pointed(run / "checkpoints", "last")
    assert last is not None
    return read_weights(last / "model.safetensors")


def test_the_average_starts_from_the_initialised_weights(tmp_path: Path) -> None:
    config = tiny("train.ema=0.9")
    setup = set_up(config, tmp_path)
    plain = new_state(config, setup.device)
    state, again = (new_state(config, setup.device, loop.first_data(setup)) for _ in range(2))
    assert state.average is not None
    assert all(torch.equal(a, p) for a, p in zip(state.average, state.weights, strict=True))
    assert all(map(torch.equal, state.parameters, again.parameters))
    assert not torch.equal(plain.parameters[0], state.parameters[0])


class Killed(Exception):
    pass


def test_initialised_once_and_resumed_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("train.ema=0.9", "data.binarize=dynamic")
    calls: list[Tensor] = []
    hook, step = lvae_conv.initialise, loop.train_step

    def noted(model: HierarchicalVAE, x: Tensor) -> None:
        calls.append(x)
        hook(model, x)

    def killed_at(number: int) -> None:
        def step_or_die(state: Any, x: Tensor, config: Any, of: int) -> None:
            if state.step == number:
                raise Killed
            step(state, x, config, of)

        monkeypatch.setattr(loop, "train_step", step_or_die)

    monkeypatch.setattr(lvae_conv, "initialise", noted)
    fit(config, tmp_path / "whole", quiet=True)
    assert len(calls) == 1
    for number, resume in ((2, False), (5, True)):  # before the first checkpoint, and after it
        killed_at(number)
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed", resume=resume, quiet=True)
        assert len(calls) == 2 + resume
    monkeypatch.setattr(loop, "train_step", step)
    fit(config, tmp_path / "killed", resume=True, quiet=True)
    assert len(calls) == 3  # not when there is a checkpoint
    assert all(torch.equal(x, calls[0]) and x.shape == (32, 1, 8, 8) for x in calls)
    assert set(calls[0].unique().tolist()) == {0.0, 1.0}  # drawn as for a step
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_resuming_refuses_another_order_in_the_blocks(tmp_path: Path) -> None:
    fit(tiny("train.steps=2"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="another model: its block is 'bacdbacd'"):
        fit(
            tiny("train.steps=4", "model.block=cabdcabd"),
            tmp_path / "run",
            resume=True,
            quiet=True,
        )
