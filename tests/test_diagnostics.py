"""Diagnostics against linear-Gaussian truths, brute force and made-up histories.

The models are linear and Gaussian, with scales that do not depend on the input: every quantity is
quadratic in the noise, so its mean over N(0, I) is its mean over all combinations of -1 and +1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ladder.build import build_model, resolve
from ladder.config import ObjectiveConfig
from ladder.diagnostics import (
    Units,
    active_units,
    bits_per_dim,
    bits_per_layer,
    kl_profile,
    merged,
    observed,
    unit_profile,
    units,
)
from ladder.distributions import Normal
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, iw_elbo
from ladder.ood import auroc, level_bounds, level_scores
from ladder.report.units import (
    MOST_COLUMNS,
    MOST_LAYERS,
    active_png,
    edges,
    shown_layers,
    sorted_map,
    thinned,
    units_png,
)
from ladder.train import fit
from ladder.train.doctor import Doctor, Finding, diagnose, verdict
from ladder.train.evaluate import SEED, evaluate
from ladder.train.run import UNITS, read_metrics, truncate_metrics

Feed = Callable[[list[Tensor]], None]
DIM = 3


def linear(dims: list[int], kl: str = "sampled", **words: Any) -> HierarchicalVAE:
    """Random weights in float64; no scale depends on its input."""
    layers = [{"dim": d} for d in dims]
    config = {"system": "hierarchy", "shape": [DIM], "likelihood": "gaussian", "layers": layers}
    model = build_model(config={**config, "kl": kl, **words}).double()
    generator = torch.Generator().manual_seed(len(dims))
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.7 * values)
        for net in [*posterior_nets(model), *prior_nets(model)]:
            net.weight[net.weight.shape[0] // 2 :] = 0.0
    return model


def posterior_nets(model: HierarchicalVAE) -> list[Any]:
    """From the data up: affine maps to means, then log-variances."""
    return [rung.posterior.net for rung in model.bottom_up.rungs.values()]


def prior_nets(model: HierarchicalVAE) -> list[Any]:
    """From the top down, without the top."""
    return [layer.prior.net for layer in list(model.top_down.layers.values())[1:]]


def data(n: int = 40) -> Tensor:
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    return 0.5 + scale * torch.randn(n, DIM, dtype=torch.float64)


@torch.no_grad()
def cut(model: HierarchicalVAE) -> None:
    """Posteriors look only at x and priors at nothing, so that no statistic depends on a draw."""
    for net in posterior_nets(model):
        net.weight[:, : net.weight.shape[1] - DIM] = 0.0
    for net in prior_nets(model):
        net.weight.zero_()


def kl_of(mean: Tensor, log_var: Tensor, p_mean: Tensor, p_log_var: Tensor) -> Tensor:
    """Closed-form KL of Gaussians by torch.distributions."""
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    p = torch.distributions.Normal(p_mean, (0.5 * p_log_var).exp())
    return torch.distributions.kl_divergence(q, p)


def test_kl_per_unit_is_the_closed_form() -> None:
    model, x = linear([4, 2], "closed_form"), data()
    cut(model)
    profile = unit_profile(model, x, batch_size=7)
    one, two = posterior_nets(model)
    (prior,) = prior_nets(model)
    expected = {
        "z2": kl_of(x @ two.weight[:2, -DIM:].T + two.bias[:2], two.bias[2:], *torch.zeros(2, 2)),
        "z1": kl_of(x @ one.weight[:4].T + one.bias[:4], one.bias[4:], *prior.bias.chunk(2)),
    }
    assert list(profile) == ["z2", "z1"]
    for name, kl in expected.items():
        assert profile[name].kl == pytest.approx(kl.mean(dim=0).tolist(), rel=1e-12)
    totals = kl_profile(model, x, batch_size=11)
    assert totals == pytest.approx({n: v.mean(0).sum().item() for n, v in expected.items()})


def test_draws_average_over_the_noise_exactly(feed: Feed) -> None:
    """q(z2|z1), p(z1|z2): fed with all signs, the KL of z2 is its exact expectation."""
    model, x = linear([1, 1]), data(5)
    one, two = posterior_nets(model)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 2)
    feed([column.repeat_interleave(len(x))[:, None] for column in signs.T])
    found = unit_profile(model, x, draws=4, seed=None)["z2"].kl
    mean1 = x @ one.weight[0] + one.bias[0]
    mean2 = two.weight[0, 0] * mean1 + x @ two.weight[0, 1:] + two.bias[0]
    variance1, variance2 = one.bias[1].exp(), two.bias[1].exp()
    # E KL(q(z2|z1,x) || N(0,1)) over z1 ~ q(z1|x)
    square = mean2.square() + two.weight[0, 0].square() * variance1
    expected = 0.5 * (square + variance2 - 1.0 - variance2.log()).mean()
    assert found == pytest.approx([expected.item()], rel=1e-12)


def test_a_unit_is_active_if_and_only_if_its_mean_depends_on_x() -> None:
    model, x = linear([5, 3], "closed_form"), data()
    cut(model)
    one, two = posterior_nets(model)
    with torch.no_grad():
        one.weight[1], one.weight[3], two.weight[0] = 0.0, 0.0, 0.0
        one.weight[2] *= 0.09 / (x @ one.weight[2]).std(correction=0)  # just under 0.01
        one.weight[4] *= 0.11 / (x @ one.weight[4]).std(correction=0)  # just over
    profile = unit_profile(model, x, batch_size=16)
    variance = (x @ one.weight[:5].T).var(dim=0, correction=0)
    assert profile["z1"].variance == pytest.approx(variance.tolist(), rel=1e-9, abs=1e-25)
    assert [v > 0.01 for v in profile["z1"].variance] == [True, False, False, False, True]
    assert active_units(model, x) == {"z2": 2, "z1": 2}
    assert profile["z1"].speaking == 5  # whose scales still differ from the prior's


def test_more_draws_take_the_noise_out_of_the_variance() -> None:
    """z2 depends on z1 alone and z1 not on x: no variance but that of the draw of z1."""
    model, x = linear([1, 1]), data(50)
    one, two = posterior_nets(model)
    with torch.no_grad():
        one.weight.zero_()
        two.weight[0, 1:], two.weight[0, 0], one.bias[1] = 0.0, 1.0, 0.0
    single = unit_profile(model, x)["z2"].variance[0]
    many = unit_profile(model, x, draws=400)["z2"].variance[0]
    assert 0.5 < single < 2.0
    assert many < 2.0 / 400
    assert active_units(model, x) == {"z2": 1, "z1": 0}
    assert active_units(model, x, draws=400) == {"z2": 0, "z1": 0}


def test_channels_sum_their_kl_and_take_their_largest_variance() -> None:
    shape = (20, 3, 4, 5)
    mean, kl = torch.randn(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    mean[:, 1] = 3.0  # a dead channel
    mean[:, 2] = 3.0
    mean[:, 2, 1, 1] = torch.linspace(0.0, 1.0, 20, dtype=torch.float64)  # one living element
    latent = Latent(mean, Normal(mean, mean), Normal(mean, mean), kl)
    given = Latent(mean, Normal(mean, mean))
    found = units(observed({"z1": latent, "z2": given})["z1"])
    assert "z2" not in observed({"z2": given})
    assert found.kl == pytest.approx(kl.sum(dim=(2, 3)).mean(dim=0).tolist(), rel=1e-12)
    assert found.variance[0] == pytest.approx(mean[:, 0].var(dim=0, correction=0).max().item())
    assert found.variance[1] == 0.0
    assert found.active == 2


def test_batches_merge_to_the_whole() -> None:
    mean = 100.0 + torch.randn(23, 4, dtype=torch.float64)
    kl = torch.rand(23, 4, dtype=torch.float64)

    def part(rows: slice) -> dict[str, Any]:
        q = Normal(mean[rows], mean[rows])
        return observed({"z1": Latent(mean[rows], q, q, kl[rows])})

    parts: dict[str, Any] = {}
    for begin, end in pairwise([0, 1, 8, 23]):
        parts = merged(parts, part(slice(begin, end)))
    found, whole = units(parts["z1"]), units(part(slice(None))["z1"])
    assert found.kl == pytest.approx(whole.kl, rel=1e-12)
    assert found.variance == pytest.approx(whole.variance, rel=1e-10)


def test_profiles_leave_generator_mode_and_gradients_alone() -> None:
    model, x = linear([2, 2]), data()
    before = torch.get_rng_state()
    first = unit_profile(model, x)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert unit_profile(model, x) == first
    assert unit_profile(model, x, seed=1) != first
    scores = level_scores(model, x)
    assert not scores.bound.requires_grad
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_bits_sum_to_the_total() -> None:
    kl = {"z3": 0.3, "z2": 2.0, "z1": 20.0}
    bits = bits_per_layer(kl, 784)
    assert list(bits) == list(kl)
    assert math.fsum(b.share for b in bits.values()) == pytest.approx(1.0, rel=1e-15)
    assert math.fsum(b.bits for b in bits.values()) == pytest.approx(22.3 / math.log(2.0))
    total = math.fsum(b.per_dim for b in bits.values())
    assert total == pytest.approx(bits_per_dim(22.3, 784), rel=1e-15)
    assert bits_per_dim(784 * math.log(256.0), 784) == pytest.approx(8.0)
    assert bits_per_layer({"z1": 0.0}, 4)["z1"] == (0.0, 0.0, 0.0)
    with pytest.raises(UserError, match="at least 1 dimension"):
        bits_per_dim(1.0, 0)


KINDS = ["bottom_up", "ladder", "bidirectional"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bound_is_the_elbo_of_the_same_draws(kind: str) -> None:
    layers = [{"dim": 4, "hidden": [6]}, {"dim": 3, "hidden": [5]}, {"dim": 2, "hidden": [5]}]
    config = {"system": "hierarchy", "shape": [1, 2, 3], "inference": kind, "layers": layers}
    model, x = build_model(config=config).double().eval(), torch.rand(9, 1, 2, 3).double()
    torch.manual_seed(3)
    scores = level_bounds(model, x)
    torch.manual_seed(3)
    with torch.no_grad():
        assert torch.allclose(scores.bound[0], elbo(*model(x), x).elbo, rtol=0.0, atol=1e-12)
    assert scores.bound.shape == scores.ratio.shape == (3, 9)
    assert torch.equal(scores.ratio[0], torch.zeros(9, dtype=torch.float64))
    assert torch.equal(scores.ratio, scores.bound[0] - scores.bound)
    assert scores.ratio[1:].abs().min() > 0.0


def test_with_one_sample_the_first_bound_is_the_importance_weighted_one() -> None:
    model, x = linear([2, 2], "closed_form"), data()
    for samples in (1, 5):
        torch.manual_seed(1)
        scores = level_bounds(model, x, samples, rows=10**6)
        torch.manual_seed(1)
        with torch.no_grad():
            expected = iw_elbo(model, x, samples, rows=10**6)
        torch.testing.assert_close(scores.bound[0], expected, rtol=0.0, atol=1e-10)


def test_the_second_bound_is_its_closed_form(feed: Feed) -> None:
    """E_q(z1',z2) [log p(z2) - log q(z2|z1',x)] + E_p(z1|z2) log p(x|z1), all Gaussian."""
    model, x = linear([1, 1]), data(1)
    one, two = posterior_nets(model)
    (prior,) = prior_nets(model)
    # Noise in the order drawn: z1 and z2 of the posterior; then the decoding's prior draws z1.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    feed([column[:, None] for column in signs.T])
    found = level_bounds(model, x.expand(8, DIM)).bound[1].mean()
    x = x[0]
    m1, v1 = one.weight[0] @ x + one.bias[0], one.bias[1].exp()
    m2 = two.weight[0, 0] * m1 + two.weight[0, 1:] @ x + two.bias[0]
    r2 = two.bias[1].exp()
    v2 = two.weight[0, 0].square() * v1 + r2
    ratio = 0.5 * (1.0 + r2.log() - m2.square() - v2)
    mean = prior.weight[0, 0] * m2 + prior.bias[0]
    variance = prior.weight[0, 0].square() * v2 + prior.bias[1].exp()
    w, d = model.likelihood[0].weight[:, 0], model.likelihood[0].bias
    log_s = model.likelihood[-1].log_scale
    square = (x - w * mean - d).square() + w.square() * variance
    log_px = (-0.5 * square * (-2.0 * log_s).exp() - log_s - 0.5 * math.log(math.tau)).sum()
    torch.testing.assert_close(found, log_px + ratio, rtol=1e-10, atol=1e-10)


def log_evidence(model: HierarchicalVAE, x: Tensor) -> Tensor:
    """log p(x) of a chain z2 -> z1 -> x of single units, `[B]`."""
    (prior,) = prior_nets(model)
    w, d = model.likelihood[0].weight[:, 0], model.likelihood[0].bias
    variance = prior.weight[0, 0].square() + prior.bias[1].exp()
    scale = (2.0 * model.likelihood[-1].log_scale).exp()
    covariance = variance * torch.outer(w, w) + scale * torch.eye(DIM, dtype=torch.float64)
    mean = w * prior.bias[0] + d
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


@torch.no_grad()
def test_with_many_samples_every_bound_meets_the_evidence() -> None:
    model, x = linear([1, 1]), data(4)
    for net in posterior_nets(model):
        net.bias[1] += 1.0  # wide enough that the weights have a variance
    truth = log_evidence(model, x)
    torch.manual_seed(0)
    loose = level_bounds(model, x.repeat_interleave(2000, dim=0), 1)
    tight = level_bounds(model, x, 200_000, rows=20_000)
    means = loose.bound.unflatten(1, (4, 2000)).mean(dim=2)
    assert (means < truth - 0.05).all()
    torch.testing.assert_close(tight.bound, truth.expand(2, 4), rtol=0.0, atol=0.1)
    assert tight.ratio.abs().max() < 0.15


@torch.no_grad()
def test_at_the_true_posterior_llr_is_what_the_low_level_knows(feed: Feed) -> None:
    """There L>0 = log p(x), and LLR>1 > 0: the prior of z1 misses what q(z1|x) saw."""
    model, x = linear([1, 1]), data(1)
    one, two = posterior_nets(model)
    (prior,) = prior_nets(model)
    w, d = model.likelihood[0].weight[:, 0], model.likelihood[0].bias
    precision = (-2.0 * model.likelihood[-1].log_scale).exp()
    b, t2 = prior.weight[0, 0], prior.bias[1].exp()
    marginal = b.square() + t2  # of z1
    v1 = 1.0 / (1.0 / marginal + precision * w.square().sum())
    one.weight[0] = v1 * precision * w
    one.bias[0] = v1 * (prior.bias[0] / marginal - precision * (w * d).sum())
    one.bias[1] = v1.log()
    v2 = 1.0 / (1.0 + b.square() / t2)
    two.weight[0, 0], two.weight[0, 1:] = v2 * b / t2, 0.0
    two.bias[0], two.bias[1] = -v2 * b / t2 * prior.bias[0], v2.log()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    feed([column[:, None] for column in signs.T])
    scores = level_bounds(model, x.expand(8, DIM))
    truth = log_evidence(model, x).expand(8)
    torch.testing.assert_close(scores.bound[0], truth, rtol=0.0, atol=1e-9)
    assert scores.ratio[1].mean() > 0.01


def test_unlikely_sets_are_refused() -> None:
    model = linear([1, 1])
    for call in (unit_profile, level_scores, active_units, kl_profile):
        with pytest.raises(UserError, match="at least one datum"):
            call(model, data(0))
    with pytest.raises(UserError, match="at least 0"):
        level_bounds(model, data(2), samples=-1)


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_auroc_is_the_count_of_pairs(digits: int) -> None:
    rng = np.random.default_rng(digits)
    a, b = rng.normal(size=37).round(digits), (rng.normal(size=23) + 0.5).round(digits)
    pairs = [float(v > u) + 0.5 * float(v == u) for u in a for v in b]
    assert auroc(torch.tensor(a), torch.tensor(b)) == pytest.approx(np.mean(pairs), rel=1e-14)
    assert auroc(torch.tensor(b), torch.tensor(a)) == pytest.approx(1 - np.mean(pairs))


def test_auroc_at_its_ends() -> None:
    low, high = torch.arange(5), torch.arange(5, 9)
    assert auroc(low, high) == 1.0
    assert auroc(high, low) == 0.0
    assert auroc(low, low) == 0.5
    assert auroc(low, torch.full((3,), math.inf)) == 1.0
    for wrong in (torch.tensor([]), torch.tensor([1.0, math.nan])):
        with pytest.raises(UserError, match="auroc"):
            auroc(low, wrong)


Record = dict[str, Any]
ANNEALED = ObjectiveConfig.model_validate({"kl_annealing": {"kind": "linear", "steps": 2000}})
PLAIN = ObjectiveConfig()


def history(*kls: dict[str, float], every: int = 500, lr: float = 3e-4) -> list[Record]:
    """An evaluation with these KLs every so many steps, and ten windows before each."""
    records: list[Record] = []
    for i, kl in enumerate(kls):
        for j in range(10):
            step = every * i + every * (j + 1) // 10
            window = {"step": step, "epoch": 1.0, "train/grad_norm": 5.0, "train/lr": lr}
            records.append(window)
        shown = {f"val/kl_{name}": value for name, value in kl.items()}
        records.append({"step": every * (i + 1), "epoch": 1.0, "val/elbo": -90.0, **shown})
    return records


HEALTHY, COLLAPSED = {"z01": 20.0, "z02": 4.0}, {"z01": 22.0, "z02": 0.01}


def found(records: list[Record], objective: ObjectiveConfig, total: int = 10_000) -> list[Finding]:
    return diagnose(records, objective, total)


def test_a_healthy_history_has_no_findings() -> None:
    assert found(history(*[HEALTHY] * 20), PLAIN) == []
    assert "no layer is dead" in verdict(history(*[HEALTHY] * 20), PLAIN)
    assert diagnose([], PLAIN) == []
    assert diagnose(history(), PLAIN) == []


def test_a_collapsed_layer_is_named_with_its_lever() -> None:
    (finding,) = found(history(*[COLLAPSED] * 6), PLAIN)
    assert finding[:4] == ("dead", "z2", 3000, "annealing")
    assert "layer z2 is dead: from step 2,000 to 3,000" in finding.sentence
    assert "\n" not in finding.sentence
    assert verdict(history(*[COLLAPSED] * 6), PLAIN, 10_000) == finding.sentence


def test_nothing_is_said_before_there_is_enough_to_say() -> None:
    # Evaluations from step 1,000 on count: three of them are there at step 2,000.
    assert [bool(found(history(*[COLLAPSED] * n), PLAIN)) for n in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert "too early" in verdict(history(*[COLLAPSED] * 3), PLAIN)


def test_while_the_kl_hardly_weighs_nothing_is_said() -> None:
    long = {"kl_annealing": {"kind": "linear", "steps": 10_000}}
    warming = ObjectiveConfig.model_validate(long)
    dead = [COLLAPSED] * 30
    assert found(history(*dead[:12]), warming) == []  # three in a row at half weight: 6,000
    assert found(history(*dead[:13]), warming) != []
    free = ObjectiveConfig.model_validate({"beta": 0.0})
    assert found(history(*dead), free) == []
    restarting = {"kind": "cyclic", "period": 4000, "ramp": 1.0}
    cyclic = ObjectiveConfig.model_validate({"kl_annealing": restarting})
    assert found(history(*dead[:6]), cyclic) == []  # 2,500, 3,000 and 3,500 count
    assert found(history(*dead[:7]), cyclic) != []


def test_a_layer_that_wakes_up_is_left_alone() -> None:
    rising = [{"z01": 20.0, "z02": kl} for kl in (0.01, 0.01, 0.01, 0.02, 0.04, 0.09)]
    assert found(history(*rising), PLAIN) == []
    flat = [{"z01": 20.0, "z02": kl} for kl in (0.01, 0.01, 0.01, 0.06, 0.07, 0.08)]
    assert found(history(*flat), PLAIN) != []
    awake = [COLLAPSED] * 9 + [HEALTHY]
    assert found(history(*awake), PLAIN) == []


def test_a_sampled_kl_below_zero_is_no_collapse() -> None:
    negative = [{"z01": -3.0, "z02": 25.0}] * 8
    assert found(history(*negative), PLAIN) == []


@pytest.mark.parametrize(
    ("objective", "lever", "word"),
    [
        ({}, "annealing", "objective.kl_annealing={kind: linear, steps: 2000}"),
        (
            {"kl_annealing": {"kind": "linear", "steps": 500}},
            "annealing",
            "objective.kl_annealing={kind: linear, steps: 2000}",
        ),
        (
            {"kl_annealing": {"kind": "linear", "steps": 2000}},
            "free_bits",
            "objective.layers={z2: {free_bits: {nats: 1.0}}}",
        ),
        (
            {"kl_annealing": {"kind": "linear", "steps": 2000}, "free_bits": {"nats": 0.05}},
            "kl_target",
            "objective.layers={z2: {free_bits: null, kl_target: 1.0}}",
        ),
        (
            {"kl_annealing": {"kind": "linear", "steps": 2000}, "kl_target": 2.0},
            "learning_rate",
            "train.lr=0.0001",
        ),
    ],
)
def test_the_first_lever_that_was_not_pulled(objective: Record, lever: str, word: str) -> None:
    (finding,) = found(history(*[COLLAPSED] * 20), ObjectiveConfig.model_validate(objective))
    assert (finding.lever, finding.change) == (lever, word)
    assert finding.sentence.endswith(word)
    resolve({**TINY, "objective": objective}, [word])  # it can be said


def test_levers_are_of_the_layer_that_is_dead() -> None:
    objective = ObjectiveConfig.model_validate(
        {
            "kl_annealing": {"kind": "linear", "steps": 2000},
            "layers": {"z1": {"free_bits": {"nats": 1.0}}, "z3": {"beta": 0.0}},
        }
    )
    kls = [{"z01": 0.02, "z02": 0.01, "z03": 0.01}] * 20
    findings = found(history(*kls), objective)
    assert [(f.layer, f.lever) for f in findings] == [("z1", "kl_target"), ("z2", "free_bits")]


def test_an_exploding_gradient_pulls_the_learning_rate() -> None:
    records = history(*[COLLAPSED] * 6)
    windows = [r for r in records if "train/grad_norm" in r]
    windows[30]["train/grad_norm"] = 400.0
    (finding,) = found(records, PLAIN)
    assert (finding.lever, finding.change) == ("learning_rate", "train.lr=0.0001")
    assert f"exploded at step {windows[30]['step']:,}" in finding.sentence
    windows[30]["train/grad_norm"] = 40.0  # only eight times as large
    assert found(records, PLAIN)[0].lever == "annealing"


def test_an_exploding_kl_is_named() -> None:
    (finding,) = found(history(*[HEALTHY] * 6, {"z01": 20.0, "z02": 500.0}), PLAIN)
    assert finding[:4] == ("exploding", "z2", 3500, "learning_rate")
    assert "500 nats" in finding.sentence
    assert found(history(*[HEALTHY] * 6, {"z01": 20.0, "z02": 50.0}), PLAIN) == []


def test_each_finding_is_said_once_also_after_resuming() -> None:
    doctor, said = Doctor(PLAIN, 10_000), []
    records = history(*[COLLAPSED] * 8)
    for record in records:
        doctor.note(record)
        if "val/elbo" in record and (news := doctor.news()):
            record["doctor"] = [finding._asdict() for finding in news]
            said.append(record["step"])
    assert said == [2000]
    written = json.loads(json.dumps(records))
    assert Doctor(PLAIN, 10_000, written).news() == []
    assert Doctor(PLAIN, 10_000, history(*[COLLAPSED] * 8)).news() != []


TINY = {
    "model": {
        "system": "hierarchy",
        "shape": [1, 8, 8],
        "layers": [{"dim": 4, "hidden": [16]}, {"dim": 2, "hidden": [8]}],
    },
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 12, "batch_size": 200, "evaluate_every": 4, "device": "cpu"},
}


def test_a_run_records_its_units_and_resumes_them_bit_for_bit(tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    fit(resolve(TINY, []), whole, quiet=True)
    fit(resolve(TINY, ["train.steps=7"]), halted, quiet=True)
    # What a kill after the last checkpoint leaves behind: a later line, and half of one.
    with (halted / UNITS).open("a") as file:
        file.write('{"step": 8, "kl": {}}\n{"step": 1')
    fit(resolve(TINY, []), halted, resume=True, quiet=True)
    lines = [r for r in read_metrics(halted, UNITS) if r["step"] != 7]
    assert lines == read_metrics(whole, UNITS)
    assert [r["step"] for r in lines] == [4, 8, 12]
    truncate_metrics(whole, 8)
    assert [r["step"] for r in read_metrics(whole, UNITS)] == [4, 8]


def test_what_is_recorded_is_what_the_evaluation_saw(tmp_path: Path) -> None:
    fit(resolve(TINY, []), tmp_path, quiet=True)
    last, line = read_metrics(tmp_path)[-1], read_metrics(tmp_path, UNITS)[-1]
    for name in ("z01", "z02"):
        seen = Units(line["kl"][name], line["variance"][name])
        assert math.fsum(seen.kl) == pytest.approx(last[f"val/kl_{name}"], rel=1e-4, abs=1e-4)
        assert last[f"active_units/{name}"] == seen.active
        assert last[f"speaking_units/{name}"] == seen.speaking


def test_an_evaluation_is_still_one_pass_for_each_batch() -> None:
    model = build_model(config=TINY["model"])
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    images = torch.rand(25, 1, 8, 8)
    result = evaluate(model, images, batch_size=10)
    assert len(calls) == 3
    assert result.units == unit_profile(model, images, batch_size=10, seed=SEED)
    for name, kl in result.kl.items():
        assert math.fsum(result.units[name].kl) == pytest.approx(kl, rel=1e-5, abs=1e-6)


def test_a_finding_is_written_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ladder.train import doctor

    monkeypatch.setattr(doctor, "SETTLED", 4)
    monkeypatch.setattr(doctor, "DEAD", 1e9)
    fit(resolve(TINY, ["train.steps=20"]), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "is dead" in line]
    assert len(lines) == 2
    records = [r for r in read_metrics(tmp_path) if "doctor" in r]
    assert [r["step"] for r in records] == [12]
    assert [f["sentence"] for f in records[0]["doctor"]] == lines


def unit_records(layers: int, evaluations: int) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        {
            "step": 100 * i,
            "epoch": float(i),
            "kl": {f"z{j:02d}": rng.normal(0.1, 1.0, 3).tolist() for j in range(1, layers + 1)},
        }
        for i in range(1, evaluations + 1)
    ]


def test_maps_are_sorted_by_the_last_kl() -> None:
    records = unit_records(2, 5)
    values = sorted_map(records, "z02")
    assert (np.diff(values[:, -1]) <= 0).all()
    assert sorted(map(tuple, values)) == sorted(
        zip(*(r["kl"]["z02"] for r in records), strict=True)
    )
    assert edges(records) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert edges(records[:2]) == [0.0, 100.0, 200.0]


def test_long_and_deep_runs_are_thinned_but_keep_their_ends() -> None:
    records = unit_records(1, MOST_COLUMNS + 7)
    kept = thinned(records)
    assert len(kept) <= MOST_COLUMNS
    assert kept[-1] is records[-1]
    names = shown_layers(unit_records(75, 1)[0])
    assert len(names) == MOST_LAYERS
    assert (names[0], names[-1]) == ("z01", "z75")
    assert shown_layers(unit_records(3, 1)[0]) == ["z01", "z02", "z03"]


@pytest.mark.parametrize("layers", [1, 9])
def test_figures_of_few_and_many_layers_are_drawn(layers: int) -> None:
    names = [f"z{i:02d}" for i in range(1, layers + 1)]
    counts = {f"{c}/{n}": 2 for c in ("active_units", "speaking_units") for n in names}
    assert units_png(unit_records(layers, 1)).startswith(b"\x89PNG")
    assert active_png([{"step": 1, "epoch": 0.1, **counts}]).startswith(b"\x89PNG")
