"""Per-layer weights and floors, balancing, and the multipliers that hold a KL at its target."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ladder.build import resolve
from ladder.config import Config, FreeBits, LinearSchedule, ObjectiveConfig
from ladder.distributions import Normal
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.likelihoods import Bernoulli
from ladder.objectives import Balancing, balance, by_layer, elbo, fair_shares, floored
from ladder.parse import to_yaml
from ladder.pretrained import pointed, read_weights
from ladder.train import fit
from ladder.train.checkpoint import restore, save
from ladder.train.multipliers import DECAY, LARGEST, PUSH, Multipliers
from ladder.train.penalising import check_objective
from ladder.train.run import read_metrics
from ladder.train.schemes import annealings_at, layer_schemes, weights_at
from ladder.train.state import new_state
from ladder.train.step import train_step

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "model": {
        "system": "hierarchy",
        "shape": [1, 8, 8],
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 2, "hidden": [8]}],
    },
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 40, "batch_size": 100, "log_every": 7, "checkpoint_every": 10},
}


def tiny(*words: str, **objective: Any) -> Config:
    return resolve({**TINY, "objective": objective}, ["train.device=cpu", *words])


def sentence(**objective: Any) -> str:
    with pytest.raises(UserError) as caught:
        tiny(**objective)
    return str(caught.value)


def latent(kl: Tensor) -> Latent:
    zeros = Normal(torch.zeros_like(kl), torch.zeros_like(kl))
    return Latent(torch.zeros_like(kl), zeros, zeros, kl)


def example() -> tuple[Bernoulli, dict[str, Latent], Tensor]:
    """p(x|z), three layers of which two have space, and data, B = 4."""
    shapes = {"z3": (4, 3), "z2": (4, 2, 2, 2), "z1": (4, 2, 4, 4)}
    latents = {
        name: latent(torch.rand(shape, dtype=torch.float64).requires_grad_())
        for name, shape in shapes.items()
    }
    px = Bernoulli(torch.randn(4, 1, 5, 5, dtype=torch.float64))
    return px, latents, torch.rand(4, 1, 5, 5, dtype=torch.float64)


# --- what the loss weighs -----------------------------------------------------------------------

SCHEMES: list[dict[str, Any]] = [
    {"beta": {"z3": 0.25, "z1": 3.0}},
    {"beta": {"z2": torch.tensor(0.5)}},
    {"free_bits": {"z1": FreeBits(nats=20.0), "z2": None}},
    {"free_bits": {"z3": FreeBits(nats=0.4, per="element", average="sample")}},
    {"balance": Balancing()},
    {"balance": Balancing("elements", torch.tensor(0.0))},
    {"beta": 0.5, "free_bits": FreeBits(nats=1.0, per="channel"), "balance": Balancing("equal")},
    {"beta": {"z1": 0.0}, "free_bits": {"z2": FreeBits(nats=3.0)}, "balance": Balancing()},
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_scheme_touches_what_is_reported(scheme: dict[str, Any]) -> None:
    px, latents, x = example()
    plain, terms = elbo(px, latents, x), elbo(px, latents, x, **scheme)
    assert torch.equal(terms.elbo, plain.elbo)
    assert torch.equal(terms.log_px, plain.log_px)
    assert list(terms.kl) == list(plain.kl)
    assert all(torch.equal(terms.kl[name], plain.kl[name]) for name in plain.kl)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_loss_is_beta_times_coefficient_times_floored_kl(scheme: dict[str, Any]) -> None:
    px, latents, x = example()
    terms = elbo(px, latents, x, **scheme)
    beta = scheme.get("beta", 1.0)
    floors = scheme.get("free_bits")
    balancing = scheme.get("balance")
    expected = -terms.log_px.mean()
    gamma = dict.fromkeys(latents, 1.0)
    if balancing is not None and float(balancing.on) == 1.0:
        alpha = {
            "scale": {"z3": 1.0, "z2": 4.0, "z1": 16.0},
            "elements": {"z3": 3.0, "z2": 8.0, "z1": 32.0},
            "equal": dict.fromkeys(latents, 1.0),
        }[balancing.by]
        excess = {n: (terms.kl[n].mean().item() + 0.01) / alpha[n] for n in latents}
        gamma = {n: 3 * v / sum(excess.values()) for n, v in excess.items()}
    for name, v in latents.items():
        weight = beta.get(name, 1.0) if isinstance(beta, dict) else beta
        floor = floors.get(name) if isinstance(floors, dict) else floors
        assert v.kl is not None
        kl = terms.kl[name].mean() if floor is None else floored(v.kl, floor)
        expected = expected + float(weight) * gamma[name] * kl
    torch.testing.assert_close(terms.loss, expected)


def test_a_layer_s_beta_scales_its_gradient_and_no_other() -> None:
    px, latents, x = example()
    leaves = [v.kl for v in latents.values() if v.kl is not None]
    weights = {"z3": 0.5, "z1": 4.0}
    got = torch.autograd.grad(elbo(px, latents, x, weights).loss, leaves)
    # d loss / d element = beta_l / B: exact, since B = 4 and the weights are powers of two.
    for gradient, weight in zip(got, (0.5, 1.0, 4.0), strict=True):
        assert torch.equal(gradient, torch.full_like(gradient, weight / 4))


def test_only_the_named_layer_has_free_bits() -> None:
    px, latents, x = example()
    leaves = [v.kl for v in latents.values() if v.kl is not None]
    floors = {"z2": FreeBits(nats=1e3), "z1": None}
    got = torch.autograd.grad(elbo(px, latents, x, 2.0, floors).loss, leaves)
    for gradient, right in zip(got, (0.5, 0.0, 0.5), strict=True):
        assert torch.equal(gradient, torch.full_like(gradient, right))
    loss = elbo(px, latents, x, 2.0, floors).loss
    other = elbo(px, latents, x)
    by_hand = 2.0 * (1e3 + other.kl["z3"].mean() + other.kl["z1"].mean()) - other.log_px.mean()
    torch.testing.assert_close(loss, by_hand)


def test_a_mapping_that_says_the_same_for_all_is_the_plain_loss() -> None:
    px, latents, x = example()
    floor = FreeBits(nats=2.0)
    plain = elbo(px, latents, x, 0.5, floor)
    mapped = elbo(px, latents, x, dict.fromkeys(latents, 0.5), dict.fromkeys(latents, floor))
    torch.testing.assert_close(mapped.loss, plain.loss, rtol=1e-15, atol=0.0)


def test_a_name_that_is_no_layer_is_a_sentence() -> None:
    px, latents, x = example()
    with pytest.raises(UserError, match="elbo: no layer 'z9'; choose from z1, z2, z3"):
        elbo(px, latents, x, {"z9": 0.5})
    with pytest.raises(UserError, match="elbo: no layer 'z11'; did you mean 'z1'"):
        elbo(px, latents, x, free_bits={"z11": None})
    assert by_layer({"b": 2}, 1, "ab") == {"a": 1, "b": 2}


def test_one_graph_whatever_the_values() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    px, latents, x = example()
    kl = {name: v.kl for name, v in latents.items() if v.kl is not None}
    floors = {"z2": FreeBits(nats=3.0), "z1": None}

    def loss(kl: dict[str, Tensor], beta: dict[str, Tensor], on: Tensor) -> Tensor:
        made = {name: latent(v) for name, v in kl.items()}
        return elbo(px, made, x, beta, floors, Balancing(on=on)).loss

    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)
    for value, on in product((0.0, 0.3, 1.0), (0.0, 1.0)):
        arguments = ({"z3": torch.tensor(value)}, torch.tensor(on))
        torch.testing.assert_close(compiled(kl, *arguments), loss(kl, *arguments))
    assert len(graphs) == 1


# --- balancing ----------------------------------------------------------------------------------

# KL of each group for two data, and the coefficients of the released implementation.
NVAE = [
    (
        [(4, 2), (3, 4), (3, 4), (3, 4)],
        [(7.15011, 2.02124), (60.1818, 35.6355), (123.526, 97.1351), (73.9357, 35.3902)],
        [0.111889, 0.874988, 2.0148, 0.998321],
        [112.845, 78.7337],
    ),
    (
        [(4, 2), (4, 2), (4, 4), (4, 4)],
        [(0.0930989, 0.0961652), (0.607298, 0.750146), (3.51804, 3.72729), (4.14378, 3.96595)],
        [0.153999, 1.01367, 1.33665, 1.49568],
        [3.45903, 3.50673],
    ),
]


@pytest.mark.parametrize(("groups", "kl", "coefficients", "balanced"), NVAE)
def test_balancing_is_the_published_one(
    groups: list[tuple[int, int]],
    kl: list[tuple[float, float]],
    coefficients: list[float],
    balanced: list[float],
) -> None:
    names = ["z4", "z3", "z2", "z1"]
    values = {n: torch.zeros(2, c, s, s) for n, (c, s) in zip(names, groups, strict=True)}
    measured = {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, kl, strict=True)}
    gamma = balance(measured, fair_shares(values))
    right = torch.tensor(coefficients, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(list(gamma.values())), right, rtol=1e-5, atol=0.0)
    total = 0.3 * sum(gamma[n] * measured[n] for n in names)  # the annealing is at 0.3 there
    expected = torch.tensor(balanced, dtype=torch.float64)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("groups", "shares"),
    [
        ([(5, 4), (10, 8)], [1, 2]),  # MNIST
        ([(5, 8), (10, 16), (20, 32)], [1, 2, 4]),  # CelebA 64
        ([(4, 8), (4, 16), (4, 32), (8, 64), (16, 128)], [1, 4, 16, 32, 64]),  # 256 x 256
        ([(30, 16)], [1]),  # CIFAR-10
    ],
)
def test_fair_shares_are_the_published_ones(
    groups: list[tuple[int, int]], shares: list[float]
) -> None:
    sizes = [size for n, size in groups for _ in range(n)]
    values = {f"z{i}": torch.empty(1, 20, s, s, device="meta") for i, s in enumerate(sizes)}
    right = [share for (n, _), share in zip(groups, shares, strict=True) for _ in range(n)]
    assert list(fair_shares(values).values()) == right


def test_fair_shares_of_dense_lines_and_volumes() -> None:
    dense = {"z2": torch.empty(1, 4), "z1": torch.empty(1, 32)}
    assert fair_shares(dense) == {"z2": 1.0, "z1": 1.0}
    assert fair_shares(dense, "elements") == {"z2": 1.0, "z1": 8.0}
    lines = {"z2": torch.empty(1, 4, 5), "z1": torch.empty(1, 2, 10)}
    assert fair_shares(lines) == {"z2": 1.0, "z1": 2.0}
    assert fair_shares(lines, "elements") == {"z2": 1.0, "z1": 1.0}
    volumes = {"z2": torch.empty(1, 4, 2, 2, 2), "z1": torch.empty(1, 2, 4, 4, 4)}
    assert fair_shares(volumes) == {"z2": 1.0, "z1": 8.0}
    assert fair_shares(volumes, "equal") == {"z2": 1.0, "z1": 1.0}


def test_coefficients_have_mean_one_and_no_gradient() -> None:
    kl = {"z2": torch.rand(5, requires_grad=True), "z1": -torch.rand(5, requires_grad=True)}
    gamma = balance(kl, {"z2": 1.0, "z1": 4.0})
    assert not any(v.requires_grad for v in gamma.values())
    torch.testing.assert_close(sum(gamma.values()), torch.tensor(2.0))
    by_size = (kl["z2"].mean() + 0.01) / ((-kl["z1"]).mean() + 0.01) * 4.0
    torch.testing.assert_close(gamma["z2"] / gamma["z1"], by_size.detach())
    nothing = balance({"z1": torch.zeros(3), "z2": torch.zeros(3)}, {"z1": 1.0, "z2": 1.0})
    assert [v.item() for v in nothing.values()] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("balancing", "switched_off"),
    [({}, [False, False, True, True]), ({"steps": 5}, [False, True, True, True])],
)
def test_balancing_ends_with_the_annealing_or_after_its_steps(
    balancing: dict[str, Any], switched_off: list[bool]
) -> None:
    annealing = {"kind": "linear", "steps": 10, "start": 0.5}
    objective = tiny(balance=balancing, kl_annealing=annealing).objective
    schemes = layer_schemes(objective, ["z2", "z1"])
    px, latents, x = example()
    for step, off in zip((0, 9, 10, 50), switched_off, strict=True):
        beta, floors, balanced = weights_at(objective, schemes, None, step)
        assert balanced is not None
        loss = elbo(px, latents, x, beta, floors, balanced).loss
        plain = elbo(px, latents, x, dict.fromkeys(latents, beta)).loss
        assert torch.equal(loss, plain) is off


# --- what the configuration says about a layer --------------------------------------------------


def objective(**fields: Any) -> ObjectiveConfig:
    return tiny(**fields).objective


def test_a_layer_takes_what_it_does_not_say_from_the_objective() -> None:
    said = {"z1": {"beta": 0.5, "free_bits": None}, "z[2-3]": {"kl_target": 4.0}}
    floor, annealing = FreeBits(nats=1.0), LinearSchedule(kind="linear", steps=9)
    whole = objective(
        beta=2.0, free_bits={"nats": 1.0}, kl_annealing={"kind": "linear", "steps": 9}, layers=said
    )
    schemes = layer_schemes(whole, ["z4", "z3", "z2", "z1"])
    assert list(schemes) == ["z4", "z3", "z2", "z1"]
    assert schemes["z4"] == (2.0, annealing, floor, None)
    assert schemes["z3"] == schemes["z2"] == (2.0, annealing, floor, 4.0)
    assert schemes["z1"] == (0.5, annealing, None, None)


def test_later_patterns_win_field_by_field_and_names_over_patterns() -> None:
    layers = {
        "z1": {"beta": 0.1},
        "*": {"beta": 0.2, "kl_target": 7.0},
        "z[1-2]": {"beta": 0.3, "free_bits": {"nats": 0.5}},
        "z2": {"kl_target": None},
    }
    schemes = layer_schemes(objective(kl_target=5.0, layers=layers), ["z12", "z2", "z1"])
    assert [s.beta for s in schemes.values()] == [0.2, 0.3, 0.1]
    assert [s.kl_target for s in schemes.values()] == [7.0, None, 7.0]
    assert [s.free_bits for s in schemes.values()] == [None, *[FreeBits(nats=0.5)] * 2]


def test_layers_survive_yaml_and_overrides() -> None:
    layers = {"z1": {"free_bits": None}, "z[2-5]": {"beta": 0.5, "kl_target": None}}
    config = tiny("objective.layers.z1.beta=0.25", kl_target=3.0, layers=layers)
    assert config.objective.layers["z1"].beta == 0.25
    again = resolve(resolve_text(to_yaml(config)))
    assert again == config
    assert again != tiny("objective.layers.z1.beta=0.25", kl_target=3.0, layers={})
    assert objective(layers={"z1": {}}) != objective(layers={"z1": {"free_bits": None}})


def resolve_text(text: str) -> dict[str, Any]:
    from ladder.parse import read_yaml

    return read_yaml(text, "text")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"layers": {"z1": {"beta": -1}}},
            "objective.layers.z1.beta: should be greater than or equal to 0, not -1",
        ),
        (
            {"layers": {"z1": {"beta": "much"}}},
            "objective.layers.z1.beta: should be a valid number, not 'much'",
        ),
        ({"layers": {"z1": {"betta": 1}}}, "objective.layers.z1: no field 'betta'; did you mean"),
        (
            {"layers": {"z[2-5]": {"kl_target": 0}}},
            "objective.layers.z[2-5].kl_target: should be greater than 0, not 0",
        ),
        ({"kl_target": -2.0}, "objective.kl_target: should be greater than 0, not -2.0"),
        ({"kl_target_rate": 0}, "objective.kl_target_rate: should be greater than 0, not 0"),
        (
            {"free_bits": {"nats": -0.5}},
            "objective.free_bits.nats: should be greater than or equal to 0, not -0.5",
        ),
        (
            {"layers": {"z2": {"free_bits": {"nats": -3}}}},
            "objective.layers.z2.free_bits.nats: should be greater than or equal to 0, not -3",
        ),
        (
            {"layers": {"z2": {"free_bits": {"nats": 1, "perr": "layer"}}}},
            "objective.layers.z2.free_bits: no field 'perr'; did you mean 'per'?",
        ),
        (
            {"layers": {"z2": {"kl_annealing": {"kind": "linear", "steps": 0}}}},
            "objective.layers.z2.kl_annealing.steps: should be greater than or equal to 1, not 0",
        ),
        (
            {"layers": {"beta": {"kl_annealing": {"kind": "linaer"}}}},
            "objective.layers.beta.kl_annealing.kind: unknown value 'linaer'; did you mean",
        ),
        ({"layers": {"z1": 3}}, "objective.layers.z1: should be a mapping, not 3"),
        ({"layers": ["z1"]}, "objective.layers: should be a mapping, not a list"),
        ({"balance": {}}, "objective: 'balance' acts while 'kl_annealing' is below 1"),
        ({"balance": {"by": "szale"}}, "objective.balance.by: unknown value 'szale'; did you"),
        ({"balance": {"step": 3}}, "objective.balance: no field 'step'; did you mean 'steps'?"),
    ],
)
def test_mistakes_have_one_sentence(fields: dict[str, Any], expected: str) -> None:
    found = sentence(**fields)
    assert found.startswith(expected)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layers": {"z3": {}}}, "objective.layers: no layer is 'z3'; choose from z1, z2"),
        ({"layers": {"z11": {}}}, "objective.layers: no layer is 'z11'; did you mean 'z1'?"),
        ({"layers": {"y*": {}}}, "objective.layers: no layer is 'y*'; choose from z1, z2"),
        ({"beta": 0.0, "kl_target": 1.0}, "objective: layer z2 has a kl_target, which needs"),
        (
            {"layers": {"z1": {"kl_target": 1.0, "free_bits": {"nats": 1.5}}}},
            "objective: layer z1 has free bits of 1.5 nats, which should be below its kl_target",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_a_sentence(fields: dict[str, Any], expected: str) -> None:
    from ladder.train.plan import plan

    for call in (check_objective, plan, lambda config: new_state(config, CPU)):
        with pytest.raises(UserError) as caught:
            call(tiny(**fields))
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)


def test_each_layer_follows_its_own_annealing() -> None:
    layers = {"z1": {"kl_annealing": {"kind": "linear", "steps": 4}, "beta": 2.0}}
    whole = objective(beta=0.5, layers=layers)
    schemes = layer_schemes(whole, ["z3", "z2", "z1"])
    for step, annealing in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        beta = weights_at(whole, schemes, None, step).beta
        assert isinstance(beta, dict)
        assert {n: v.item() for n, v in beta.items()} == {
            "z3": 0.5,
            "z2": 0.5,
            "z1": 2 * annealing,
        }
        assert all(v.dtype == torch.float32 and v.shape == () for v in beta.values())


def test_alike_layers_cost_no_more_than_before() -> None:
    floor = {"nats": 1.0}
    whole = objective(free_bits=floor, layers={"*": {"beta": 1.0, "free_bits": floor}})
    weights = weights_at(whole, layer_schemes(whole, ["z2", "z1"]), None, 3)
    assert isinstance(weights.beta, Tensor)
    assert weights.free_bits == FreeBits(nats=1.0)
    assert weights.balancing is None


# --- multipliers --------------------------------------------------------------------------------


def ones(*names: str) -> dict[str, Tensor]:
    return dict.fromkeys(names, torch.tensor(1.0, dtype=torch.float64))


def test_a_multiplier_follows_its_formula() -> None:
    held = Multipliers({"z2": 4.0, "z1": 10.0}, 0.05, CPU)
    assert {n: v.item() for n, v in held.factors(ones("z2", "z1")).items()} == {"z2": 1, "z1": 1}
    mean, log = {"z2": 4.0, "z1": 10.0}, {"z2": 0.0, "z1": 0.0}
    annealing = {"z2": torch.tensor(0.5), "z1": torch.tensor(3.0)}  # counts as 1
    eased = {"z2": 0.5, "z1": 1.0}
    for _ in range(20):
        kl = {name: 8 * torch.rand(6) - 1 for name in ("z3", "z2", "z1")}
        held.update(kl, annealing, torch.tensor(0.0))
        factors = held.factors(annealing)
        for name, target in (("z2", 4.0), ("z1", 10.0)):
            mean[name] += (1 - DECAY) * (float(kl[name].mean()) - mean[name])
            error = (mean[name] - target) / (abs(mean[name]) + target)
            log[name] += 0.05 * eased[name] * error
            right = math.exp(eased[name] * (log[name] + PUSH * error))
            assert factors[name].item() == pytest.approx(right, rel=1e-5)
    assert held.log.tolist() == pytest.approx(list(log.values()), rel=1e-5)


def test_multipliers_are_bounded_and_a_step_changes_them_little() -> None:
    held = Multipliers({"z2": 1.0, "z1": 1.0}, 1.0, CPU)
    for _ in range(200):
        before = held.log
        held.update(
            {"z2": torch.full((2,), 1e30), "z1": torch.full((2,), -1e30)},
            ones("z2", "z1"),
            torch.tensor(0.0),
        )
        assert (held.log - before).abs().max() <= 1.0
    torch.testing.assert_close(held.log, torch.tensor([LARGEST, -LARGEST]))
    assert all(v.isfinite() for v in held.factors(ones("z2", "z1")).values())


def test_a_failed_step_and_an_annealing_of_zero_leave_multipliers_alone() -> None:
    held = Multipliers({"z1": 1.0}, 0.5, CPU)
    held.update({"z1": torch.full((2,), math.nan)}, ones("z1"), torch.tensor(1.0))
    assert (held.log.item(), held.mean.item()) == (0.0, 1.0)
    waiting = {"z1": torch.tensor(0.0)}
    held.update({"z1": torch.full((2,), 50.0)}, waiting, torch.tensor(0.0))
    assert held.log.item() == 0.0
    assert held.mean.item() == pytest.approx(5.9)
    assert held.factors(waiting)["z1"].item() == 1.0


def test_a_multiplier_multiplies_beta_and_annealing() -> None:
    annealing = {"kind": "linear", "steps": 4}
    layers = {"z1": {"kl_target": 2.0, "beta": 3.0, "kl_annealing": annealing}}
    state = new_state(tiny(layers=layers), CPU)
    assert state.multipliers is not None
    assert state.multipliers.names == ["z1"]
    state.multipliers.log = torch.tensor([2.0])
    config = tiny(layers=layers).objective
    for step, a in ((0, 0.0), (2, 0.5), (8, 1.0)):
        beta = weights_at(config, state.schemes, state.multipliers, step).beta
        assert isinstance(beta, dict)
        assert beta["z2"].item() == 1.0
        assert beta["z1"].item() == pytest.approx(3.0 * a * math.exp(2.0 * a))


def codes(**objective: Any) -> dict[str, float]:
    """Mean KL by layer at the end of training on 4 random bits, each written 4 times."""
    model = {
        "system": "hierarchy",
        "shape": [16],
        "kl": "closed_form",
        "layers": [{"dim": 4, "hidden": [32]}, {"dim": 2, "hidden": [16]}],
    }
    raw = {**TINY, "model": model, "objective": objective}
    config = resolve(raw, ["train.device=cpu", "train.lr=1e-2", "data.binarize=none"])
    state, generator = new_state(config, CPU), torch.Generator().manual_seed(1)
    for step in range(360):
        if step == 320:
            state.meter.clear()
        bits = torch.randint(2, (64, 4), generator=generator).float()
        train_step(state, bits.repeat_interleave(4, dim=1), config)
    means = state.meter.read()
    return {"z2": means["kl/z02"], "z1": means["kl/z01"]}


def test_a_layer_is_held_at_its_target_from_either_side() -> None:
    free = codes()
    assert free["z2"] < 0.1
    assert free["z1"] > 2.5
    # One layer that would collapse, and one that would use more.
    layers = {"z2": {"kl_target": 1.0}, "z1": {"kl_target": 1.5}}
    held = codes(layers=layers, kl_target_rate=0.05)
    assert held["z2"] == pytest.approx(1.0, rel=0.25)
    assert held["z1"] == pytest.approx(1.5, rel=0.25)


# --- a run with all of it -----------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "kl_target": 2.0,
    "kl_annealing": {"kind": "linear", "steps": 20},
    "balance": {},
    "layers": {"z1": {"beta": 0.5, "free_bits": {"nats": 0.5}}},
}

# Kills itself, really, before a given step.
SUICIDE = """
import json, os, signal, sys
from pathlib import Path
from ladder.build import resolve
from ladder.train import fit, loop

config, out, step = json.loads(sys.argv[1])
train_step = loop.train_step

def step_or_die(state, x, config, of):
    if state.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(state, x, config, of)

loop.train_step = step_or_die
fit(resolve(config, ["train.device=cpu"]), Path(out), quiet=True)
"""


def last(run: Path) -> Path:
    path = pointed(run / "checkpoints", "last")
    assert path is not None
    return path


def test_killed_and_resumed_multipliers_end_bit_for_bit(tmp_path: Path) -> None:
    raw = {**TINY, "objective": EVERYTHING}
    config = resolve(raw, ["train.device=cpu"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(config, whole, quiet=True)
    words = json.dumps([raw, str(killed), 17])
    result = subprocess.run([sys.executable, "-c", SUICIDE, words], capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    fit(config, killed, resume=True, quiet=True)
    one, two = (read_weights(last(run) / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    ends = [torch.load(last(run) / "state.pt")["multipliers"] for run in (whole, killed)]
    assert ends[0]["names"] == ends[1]["names"] == ["z2", "z1"]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ("log", "mean"))
    assert not torch.equal(ends[0]["log"], torch.zeros(2))
    logs = [
        [{k: v for k, v in r.items() if "per_s" not in k} for r in read_metrics(run)]
        for run in (whole, killed)
    ]
    assert logs[0] == logs[1]
    trained = [r for r in logs[0] if "train/beta" in r]
    assert all({"kl_weight/z01", "kl_weight/z02"} <= r.keys() for r in trained)
    factors = (ends[0]["log"] + PUSH * (ends[0]["mean"] - 2) / (ends[0]["mean"].abs() + 2)).exp()
    assert trained[-1]["step"] == 40
    assert trained[-1]["train/beta"] == 1.0
    assert trained[-1]["kl_weight/z02"] == pytest.approx(factors[0].item())
    assert trained[-1]["kl_weight/z01"] == pytest.approx(0.5 * factors[1].item())


def test_a_checkpoint_from_before_there_were_multipliers_loads(tmp_path: Path) -> None:
    config = tiny(kl_target=2.0)
    state = new_state(config, CPU)
    path = save(tmp_path, state, keep=1)
    rest = torch.load(path / "state.pt")
    del rest["multipliers"]
    torch.save(rest, path / "state.pt")
    fresh = new_state(config, CPU)
    restore(path, fresh)
    assert fresh.multipliers is not None
    assert fresh.multipliers.log.tolist() == [0.0, 0.0]


def test_multipliers_of_other_layers_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, new_state(tiny(layers={"z1": {"kl_target": 2.0}}), CPU), keep=1)
    with pytest.raises(UserError, match=r"state.pt: .*kl_target is for \['z2'\]"):
        restore(path, new_state(tiny(layers={"z2": {"kl_target": 2.0}}), CPU))


def test_a_loss_that_is_not_finite_is_still_explained(tmp_path: Path) -> None:
    from ladder.errors import WorkFailed

    with pytest.raises(WorkFailed, match="not finite; the first to go was"):
        fit(tiny("train.lr=1e18", **EVERYTHING), tmp_path / "run", quiet=True)


def test_the_step_of_multipliers_reads_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**EVERYTHING)
    state = new_state(config, CPU)
    assert state.multipliers is not None
    kl = {"z2": torch.rand(3), "z1": torch.rand(3)}
    annealing = annealings_at(state.schemes, 3)
    called: list[str] = []
    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: called.append(name))
    state.multipliers.update(kl, annealing, state.failed)
    weights_at(config.objective, state.schemes, state.multipliers, 3)
    assert called == []
