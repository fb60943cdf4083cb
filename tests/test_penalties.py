"""Penalties of weights: against singular values, autograd, and iterations done by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladder import cli
from ladder.batchnorm import BatchNorm2d
from ladder.build import resolve
from ladder.config import Config, ObjectiveConfig
from ladder.errors import UserError, WorkFailed
from ladder.flows import masked
from ladder.penalties import BatchNormScales, SpectralNorms
from ladder.pretrained import pointed, read_weights
from ladder.systems.nvae.cells import Inverted
from ladder.train import fit, loop
from ladder.train.checkpoint import restore, save
from ladder.train.health import first_offender
from ladder.train.penalising import Penalising
from ladder.train.run import read_metrics
from ladder.train.schemes import weights_at
from ladder.train.state import State, new_state
from ladder.train.step import forward_terms, prepare, train_step
from ladder.weightnorm import WeightNormConv2d

CPU = torch.device("cpu")
LEAST = 1e-3  # as published, like the 40 and 4 iterations


def various() -> nn.ModuleList:
    """Convolutions of all kinds, of equal and of different shapes, in double precision."""
    hiding = torch.ones(6, 3, 3, 3)
    hiding[:, :, 2], hiding[4] = 0.0, 0.0
    modules = nn.ModuleList(
        [
            nn.Conv2d(3, 6, 3),
            nn.Linear(4, 4),
            WeightNormConv2d(3, 6, 3, mask=hiding),
            nn.Conv2d(3, 6, 3, bias=False, stride=2),
            nn.Sequential(WeightNormConv2d(3, 6, 3), WeightNormConv2d(9, 6, 3, groups=3)),
            nn.Conv2d(8, 8, 5, groups=8),
            WeightNormConv2d(4, 4, 3, groups=2),
            WeightNormConv2d(6, 4, 1),
            WeightNormConv2d(6, 4, 1),
            nn.Conv1d(3, 2, 5),
            nn.Conv3d(1, 5, 2),
            masked(2, 12, 3, strict=True, mirror=False),
            masked(12, 12, 5, strict=False, mirror=True, depthwise=True),
        ]
    ).double()
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return modules


def convolutions(model: nn.Module) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d))


def matrix(conv: nn.Module) -> Tensor:
    """What the convolution multiplies with, `[out, rest]`, written to memory."""
    rows = conv.weight.flatten(1)
    if not isinstance(conv, WeightNormConv2d):
        return rows
    rows = rows if conv.mask is None else rows * conv.mask.flatten(1)
    return conv.log_norm.flatten(1).exp() * rows / (rows.norm(dim=1, keepdim=True) + 1e-5)


def spectral_norms(model: nn.Module) -> list[float]:
    return [torch.linalg.svdvals(matrix(m).detach())[0].item() for m in convolutions(model)]


def tiny(*words: str) -> Config:
    return resolve("tiny_nvae", ["train.device=cpu", *words])


# --- spectral norms -----------------------------------------------------------------------------


def test_many_iterations_end_at_the_singular_values() -> None:
    model = various()
    expected = spectral_norms(model)
    assert len(expected) == 13
    value = SpectralNorms(model)(2000).item()
    assert value == pytest.approx(sum(expected), rel=1e-8)


def test_all_convolutions_of_a_model_count_once() -> None:
    model = new_state(tiny(), CPU).model.double()
    value = SpectralNorms(model)(400).item()
    assert value == pytest.approx(sum(spectral_norms(model)), rel=1e-5)


def test_the_iteration_never_overestimates() -> None:
    model = various()
    bound, penalty = sum(spectral_norms(model)), SpectralNorms(model)
    values = [penalty(1).item() for _ in range(6)]
    assert values == sorted(values)
    assert values[-1] < bound


def test_the_gradient_is_that_of_u_w_v() -> None:
    model = various()
    penalty = SpectralNorms(model)
    value = penalty()
    members = [(shape, i) for shape, group in penalty.groups.items() for i in range(len(group))]
    terms = []
    for shape, i in members:
        u, v = penalty.u[shape][i], penalty.v[shape][i]
        assert not u.requires_grad
        assert not v.requires_grad
        terms.append(u @ matrix(penalty.groups[shape][i]) @ v)
    assert len(terms) == 13
    by_hand = torch.stack(terms).sum()
    torch.testing.assert_close(value, by_hand, rtol=1e-12, atol=0.0)
    leaves = [p for m in convolutions(model) for n, p in m.named_parameters() if n != "bias"]
    got = torch.autograd.grad(value, leaves)
    right = torch.autograd.grad(by_hand, leaves)
    for ours, theirs in zip(got, right, strict=True):
        assert ours.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def replayed(w: Tensor, u: Tensor, v: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """So many times v = normalize(u W), u = normalize(W v)."""
    for _ in range(times):
        v = u @ w
        v = v / max(v.norm().item(), LEAST)
        u = w @ v
        u = u / max(u.norm().item(), LEAST)
    return u, v


@pytest.mark.parametrize("size", [1.0, 0.97e-3])  # vectors of less than 1e-3 are not brought to 1
@pytest.mark.parametrize("kind", [nn.Conv2d, WeightNormConv2d])
def test_forty_iterations_first_then_four(kind: type[nn.Conv2d], size: float) -> None:
    """Singular values so near each other that one iteration more or less shows."""
    conv = kind(3, 5, 3).double()
    left, _, right = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
    spread = size * torch.tensor([1.0, 0.99, 0.98, 0.97, 0.96], dtype=torch.float64)
    with torch.no_grad():
        w = left @ spread.diag() @ right
        conv.weight.copy_(w.view_as(conv.weight))
        if isinstance(conv, WeightNormConv2d):
            norm = w.norm(dim=1).view(5, 1, 1, 1)
            conv.log_norm.copy_((norm + 1e-5).log())  # so that it convolves with w
    penalty = SpectralNorms(conv)
    u, v = penalty.u["5x27"][0].clone(), penalty.v["5x27"][0].clone()
    assert u.norm().item() == pytest.approx(1.0)
    assert v.norm().item() == pytest.approx(1.0)
    for times in (40, 4, 4):
        value = penalty().item()
        near = [replayed(w, u, v, times + more)[0] for more in (-1, 1)]
        u, v = replayed(w, u, v, times)
        for ours, right_one in ((penalty.u["5x27"][0], u), (penalty.v["5x27"][0], v)):
            torch.testing.assert_close(ours, right_one, rtol=1e-8, atol=1e-10)
        assert all((other - u).abs().max() > 1e-5 for other in near)
        assert value == pytest.approx((u @ w @ v).item(), rel=1e-9)
        with torch.no_grad():  # the next iterations go on from u, with the weights of then
            if isinstance(conv, WeightNormConv2d):
                conv.log_norm += math.log(1.5)
            else:
                conv.weight *= 1.5
            w = 1.5 * w


def test_what_one_convolution_is_does_not_depend_on_the_others() -> None:
    """Of one shape, weight-normed and plain: each row of u is the iteration of its own matrix."""
    model = various()
    penalty = SpectralNorms(model)
    group = penalty.groups["6x27"]
    assert [type(m) for m in group] == [*[nn.Conv2d, WeightNormConv2d] * 2, WeightNormConv2d]
    before = list(zip(penalty.u["6x27"].clone(), penalty.v["6x27"].clone(), strict=True))
    penalty(7)
    for i, conv in enumerate(group):
        u, v = replayed(matrix(conv).detach(), *before[i], 7)
        torch.testing.assert_close(penalty.u["6x27"][i], u, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(penalty.v["6x27"][i], v, rtol=1e-10, atol=1e-12)


def test_its_state_comes_back(tmp_path: Path) -> None:
    model = various()
    penalty = SpectralNorms(model)
    penalty()
    torch.save(penalty.state_dict(), tmp_path / "state.pt")
    other = SpectralNorms(copy.deepcopy(model))
    assert not torch.equal(other.u["8x25"], penalty.u["8x25"])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):  # four iterations each, not forty again
        assert torch.equal(penalty(), other())
        for ours, theirs in ((penalty.u, other.u), (penalty.v, other.v)):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[shape], theirs[shape]) for shape in ours)


@pytest.mark.parametrize("others", [[nn.Conv2d(2, 3, 1)] * 2, [nn.Conv2d(2, 3, 3)], []])
def test_the_state_of_other_convolutions_is_refused(others: list[nn.Module]) -> None:
    first = nn.Conv2d(2, 3, 1)
    state = SpectralNorms(nn.ModuleList([first, nn.Conv2d(2, 3, 1), nn.Conv2d(1, 1, 3)]))
    penalty = SpectralNorms(nn.ModuleList([first, *copy.deepcopy(others)]))
    before = penalty.u["3x2"]
    with pytest.raises(ValueError, match="power iterations are of other convolutions"):
        penalty.load_state_dict(state.state_dict())
    assert penalty.u["3x2"] is before
    assert not penalty.begun


# --- scales of batch norms ----------------------------------------------------------------------


def normed() -> nn.ModuleList:
    modules = nn.ModuleList(
        [
            nn.BatchNorm2d(5),
            nn.BatchNorm1d(3),
            BatchNorm2d(5),
            nn.Sequential(nn.BatchNorm3d(3)),
            nn.BatchNorm2d(7, affine=False),
            nn.InstanceNorm2d(3, affine=True),
            nn.LayerNorm(3),
        ]
    ).double()
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return modules


def affine(model: nn.Module) -> list[nn.Parameter]:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    return [m.weight for m in model.modules() if isinstance(m, kinds) and m.affine]


def test_scales_add_up_to_the_largest_of_each() -> None:
    model = normed()
    assert len(affine(model)) == 4
    value = BatchNormScales(model)()
    expected = sum(max(abs(g) for g in weight.tolist()) for weight in affine(model))
    assert value.item() == pytest.approx(expected, rel=1e-14)
    value.backward()
    for weight in affine(model):
        at = weight.detach().abs().argmax()
        right = torch.zeros_like(weight)
        right[at] = weight[at].detach().sign()
        assert weight.grad is not None
        assert torch.equal(weight.grad, right)


def test_scales_that_are_alike_share_the_gradient() -> None:
    model = nn.BatchNorm2d(4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([2.0, 1.0, -2.0, 0.0]))
    BatchNormScales(model)().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [0.5, 0.0, -0.5, 0.0]


def test_the_scales_of_a_model_are_followed() -> None:
    model = new_state(tiny(), CPU).model
    penalty, count = BatchNormScales(model), len(affine(model))
    assert penalty().item() == count > 20  # all scales begin at 1
    with torch.no_grad():
        affine(model)[3][-1] = -4.0
    assert penalty().item() == count + 3


# --- what has no such thing ---------------------------------------------------------------------

NOTHING = [
    (
        "spectral",
        "objective.penalties.spectral: the model has no convolution that it reads; give 0",
    ),
    ("batch_norm", "objective.penalties.batch_norm: the model has no batch norm; give 0"),
]


@pytest.mark.parametrize(("name", "sentence"), NOTHING)
def test_a_model_without_either_is_a_sentence(name: str, sentence: str) -> None:
    kind = {"spectral": SpectralNorms, "batch_norm": BatchNormScales}[name]
    with pytest.raises(UserError) as caught:
        kind(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(3, affine=False)))
    assert str(caught.value) == sentence
    config = resolve("mnist_2layer", [f"objective.penalties.{name}=1e-2"])
    with pytest.raises(UserError) as caught:
        new_state(config, CPU)
    assert str(caught.value) == sentence
    new_state(resolve("mnist_2layer", [f"objective.penalties.{name}=0"]), CPU)  # costs nothing


@pytest.mark.parametrize(("name", "sentence"), NOTHING)
def test_on_the_command_line_it_is_one_line_and_nothing_is_written(
    name: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "mnist_2layer", "data=digits", f"objective.penalties.{name}=1e-2"]
    assert cli.main([*words, "train.device=cpu"]) == 2
    assert cli.main([*words, "train.device=cpu", "--out", "run"]) == 2
    assert capsys.readouterr() == ("", f"ladder: {sentence}\n" * 2)
    assert not list(tmp_path.iterdir())


# --- what they weigh ----------------------------------------------------------------------------


def objective(**fields: Any) -> ObjectiveConfig:
    return resolve({"preset": "tiny_nvae", "objective": fields}).objective


def both() -> nn.ModuleList:
    return nn.ModuleList([nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)])


LINE = {"kind": "linear", "steps": 10, "least": 0.25}
OVER = {"kind": "linear", "steps": 10, "end": 3.0, "least": 0.0}


@pytest.mark.parametrize(
    ("annealing", "share"),
    [
        (LINE, lambda step: max(min(step / 10, 1.0), 0.25)),
        (OVER, lambda step: min(step * 3 / 10, 1.0)),  # an annealing above 1 counts as 1
        ({"kind": "constant", "value": 1.0}, lambda step: 1.0),
    ],
)
def test_weights_go_geometrically_from_where_they_start(annealing: Any, share: Any) -> None:
    final = {"spectral": 1e-2, "batch_norm": 3e-2}
    whole = objective(balance=None, kl_annealing=annealing, penalties={**final, "start": 2.0})
    penalising = Penalising(whole, both())
    for step in (0, 1, 4, 7, 10, 99):
        b, costs = share(step), penalising(step)
        assert list(costs) == ["spectral", "batch_norm"]
        for name, cost in costs.items():
            assert cost.value.shape == cost.weighted.shape == ()
            right = math.exp((1 - b) * math.log(2.0) + b * math.log(final[name]))
            assert (cost.weighted / cost.value).item() == pytest.approx(right, rel=1e-6)


def test_without_a_start_weights_stay() -> None:
    penalties = {"spectral": 0.5, "batch_norm": 2.0}
    penalising = Penalising(objective(kl_annealing=LINE, penalties=penalties), both())
    for step in (0, 3, 50):
        costs = penalising(step)
        assert torch.equal(costs["spectral"].weighted, 0.5 * costs["spectral"].value)
        assert torch.equal(costs["batch_norm"].weighted, 2.0 * costs["batch_norm"].value)


def test_a_penalty_of_no_weight_is_not_there() -> None:
    model = nn.BatchNorm2d(3)
    penalising = Penalising(objective(penalties={"spectral": 0.0, "batch_norm": 1.0}), model)
    assert list(penalising(0)) == ["batch_norm"]
    assert penalising.state_dict() == {"spectral": None}
    penalising.load_state_dict({"spectral": None})


def batch() -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def test_the_loss_has_them_and_the_reported_bound_does_not() -> None:
    config, x, step = tiny("objective.penalties.start=3.0"), batch(), 10
    state, twin = new_state(config, CPU), new_state(config, CPU)
    plain_config = tiny("objective.penalties=null")
    plain = new_state(plain_config, CPU)
    assert plain.penalising is None
    state.step = plain.step = step
    train_step(state, x, config)
    train_step(plain, x, plain_config)
    weights = weights_at(config.objective, twin.schemes, None, step)
    terms = forward_terms(twin.model, prepare(x, step, config), weights, config)
    assert twin.penalising is not None
    assert twin.penalising.spectral is not None
    weight = 3.0 ** (2 / 3) * 1e-2 ** (1 / 3)  # the annealing is at a third
    spectral, scales = twin.penalising.spectral(), BatchNormScales(twin.model)()
    loss = terms.loss + weight * (spectral + scales)
    read, without = state.meter.read(), plain.meter.read()
    assert read["train/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert without["train/loss"] == pytest.approx(terms.loss.item(), rel=1e-6)
    assert read["penalty/spectral"] == pytest.approx(spectral.item(), rel=1e-6)
    assert read["penalty/batch_norm"] == pytest.approx(scales.item(), rel=1e-6)
    assert read["train/elbo"] == pytest.approx(terms.elbo.mean().item(), rel=1e-6)
    own = {"train/loss", "train/grad_norm", "penalty/spectral", "penalty/batch_norm"}
    assert {k: v for k, v in read.items() if k not in own} == {
        k: v for k, v in without.items() if k not in own
    }
    loss.backward()
    for ours, theirs in zip(state.parameters, twin.parameters, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_initial_weights_are_the_same_with_them() -> None:
    words = ("objective.penalties.spectral=1", "objective.penalties=null")
    with_them, without = (new_state(tiny(word), CPU).parameters for word in words)
    assert all(torch.equal(a, b) for a, b in zip(with_them, without, strict=True))


def test_they_are_exact_where_the_networks_are_not() -> None:
    x, found = batch(), []
    for precision in ("float32", "bfloat16"):
        config = tiny(f"train.precision={precision}")
        state = new_state(config, CPU)
        train_step(state, x, config)
        read = state.meter.read()
        found.append([read["penalty/spectral"], read["penalty/batch_norm"]])
    assert found[0] == found[1]


# --- in the loop --------------------------------------------------------------------------------

RUN = ("train.steps=9", "train.batch_size=50", "train.checkpoint_every=4", "train.log_every=3")


class Killed(Exception):
    """Nothing in the library catches it."""


def last(run: Path) -> Path:
    path = pointed(run / "checkpoints", "last")
    assert path is not None
    return path


def same(a: Any, b: Any) -> bool:
    """Whether two states of plain values and tensors agree bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_killed_and_resumed_ends_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(state: State, x: Tensor, config: Config, of: int) -> None:
        if state.step == 6:
            raise Killed
        train_step(state, x, config, of)

    config = tiny(*RUN, "train.ema=0.9")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(config, whole, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dying)
        with pytest.raises(Killed):
            fit(config, killed, quiet=True)
    assert last(killed).name == "step-00000004"
    fit(config, killed, resume=True, quiet=True)
    one, two = (read_weights(last(run) / "model.safetensors") for run in (whole, killed))
    assert same(one, two)
    ends = [torch.load(last(run) / "state.pt") for run in (whole, killed)]
    assert ends[0]["penalising"]["spectral"]["begun"]
    for key in ("step", "penalising", "weights", "optimizer"):
        assert same(ends[0][key], ends[1][key]), key
    logs = [
        [{k: v for k, v in r.items() if "per_s" not in k} for r in read_metrics(run)]
        for run in (whole, killed)
    ]
    assert logs[0] == logs[1]
    windows = [r for r in logs[0] if "train/loss" in r]
    assert all({"penalty/spectral", "penalty/batch_norm"} <= r.keys() for r in windows)


def saved(folder: Path, **changed: Any) -> Path:
    """A checkpoint of a model with penalties, some of whose state is another."""
    path = save(folder, new_state(tiny(), CPU), keep=1)
    rest = torch.load(path / "state.pt")
    torch.save({**rest, **changed}, path / "state.pt")
    return path


@pytest.mark.parametrize("words", ["model.channels=4", "model.flows=2", "model.groups=[1, 1]"])
def test_penalties_of_another_model_are_refused(tmp_path: Path, words: str) -> None:
    other = new_state(tiny(words), CPU)
    assert other.penalising is not None
    path = saved(tmp_path, penalising=other.penalising.state_dict())
    with pytest.raises(UserError) as caught:
        restore(path, new_state(tiny(), CPU))
    assert str(caught.value) == (
        f"{path / 'state.pt'}: of another optimiser or model: "
        "its power iterations are of other convolutions"
    )
    with pytest.raises(UserError, match="another model: its "):
        restore(path, other)


def test_a_checkpoint_without_penalties_loads_and_they_begin(tmp_path: Path) -> None:
    path = saved(tmp_path, penalising=None)
    fresh = new_state(tiny(), CPU)
    assert fresh.penalising is not None
    assert fresh.penalising.spectral is not None
    before = fresh.penalising.state_dict()
    restore(path, fresh)
    assert same(fresh.penalising.state_dict(), before)
    assert not fresh.penalising.spectral.begun
    plain = new_state(tiny("objective.penalties=null"), CPU)
    restore(saved(tmp_path / "again"), plain)
    assert plain.penalising is None


def overflowing(state: State, name: str) -> None:
    """Finite weights that no datum ever meets, but whose penalty is not finite."""
    parts = [m for m in state.model.modules() if isinstance(m, Inverted)][:2]
    with torch.no_grad():
        for part in parts:
            part.expand.weight.fill_(0.0)  # so 0 is all that comes next
            if name == "batch_norm":
                part.norm_wide.eps = 1.0
                part.norm_wide.weight.fill_(3e38)
            else:
                assert state.penalising is not None
                assert state.penalising.spectral is not None
                rows, columns = part.middle.weight.flatten(1).shape
                u = state.penalising.spectral.u[f"{rows}x{columns}"][0]
                part.middle.weight.copy_(3e38 * u.sign().view(-1, 1, 1, 1))


@pytest.mark.parametrize("name", ["spectral", "batch_norm"])
def test_a_penalty_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def poisoned(state: State, x: Tensor, config: Config, of: int) -> None:
        if state.step == 5:
            overflowing(state, name)
            assert first_offender(state, x, 5, config) == f"the penalty {name}"
        train_step(state, x, config, of)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(WorkFailed, match=rf"step 6: .* was the penalty {name}; .*00000004"):
        fit(tiny(*RUN), tmp_path / "run", quiet=True)


def test_a_step_with_penalties_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.item()`, `.tolist()` or truth of a tensor in a step: each would wait for the device."""
    config, x = tiny("objective.penalties.start=1.0", "data.flip=true"), batch()
    state = new_state(config, CPU)
    train_step(state, x, config)
    called: list[str] = []
    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(Tensor, name)

        def noted(self: Tensor, *args: Any, _n: str = name, _o: Any = original) -> Any:
            called.append(_n)
            return _o(self, *args)

        monkeypatch.setattr(Tensor, name, noted)
    train_step(state, x, config)
    assert called == []
    monkeypatch.undo()
    assert {"penalty/spectral", "penalty/batch_norm"} <= state.meter.read().keys()
