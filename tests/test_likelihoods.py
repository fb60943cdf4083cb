from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ladder.config import Settings
from ladder.distributions import Normal
from ladder.errors import UserError
from ladder.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    BernoulliHead,
    BernoulliSpec,
    CategoricalHead,
    Gaussian,
    GaussianHead,
    GaussianSpec,
    Head,
    Likelihood,
    LogisticHead,
    LogisticMixtureHead,
    make_head,
)
from ladder.logistics import RULES
from ladder.parse import apply_override, check, merge, to_yaml

RULED = [LogisticHead(8, bins=rule) for rule in RULES] + [LogisticHead(5, bins="vdvae")]
MIXED = [LogisticMixtureHead(2, 8, rule) for rule in RULES]
EVERY: list[Head] = [
    *(LIKELIHOODS[kind]() for kind in LIKELIHOODS),
    GaussianHead("pixel"),
    GaussianHead(0.3),
    LogisticHead(scale="learned"),
    CategoricalHead(3),
    *RULED,
    *MIXED,
]


def named(head: Head) -> str:
    details = [str(v) for v in (getattr(head, "scale", ""), *getattr(head, "bins", ())) if v]
    return "-".join([type(head).__name__, *details])


every_head = pytest.mark.parametrize("head", EVERY, ids=named)


def test_bernoulli_sums_to_one() -> None:
    px = Bernoulli(torch.linspace(-30, 30, 61, dtype=torch.float64))
    total = sum(px.log_prob(torch.full((61,), x, dtype=torch.float64)).exp() for x in (0.0, 1.0))
    torch.testing.assert_close(total, torch.ones(61, dtype=torch.float64))


def test_bernoulli_is_torchs_and_finite_where_torchs_is_not() -> None:
    logits = torch.randn(50, dtype=torch.float64)
    x = torch.rand(50, dtype=torch.float64)
    mean = logits.sigmoid()
    expected = x * mean.log() + (1 - x) * (1 - mean).log()
    torch.testing.assert_close(Bernoulli(logits).log_prob(x), expected)
    torch.testing.assert_close(Bernoulli(logits).mean, mean)
    extreme = Bernoulli(torch.tensor([-1000.0, 1000.0]))
    assert extreme.log_prob(torch.tensor([1.0, 0.0])).tolist() == [-1000.0, -1000.0]


def test_bernoulli_samples_match_log_prob() -> None:
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0]).expand(40_000, 4)
    px = Bernoulli(logits)
    x = px.sample()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = px.log_prob(torch.ones_like(x)).exp()[0]
    error = (p * (1 - p) / len(x)).sqrt()
    assert ((x.mean(0) - p).abs() < 5 * error).all()


def test_gaussian_integrates_to_one() -> None:
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    for mean, log_scale in ((0.3, 0.0), (-1.0, -1.5), (2.0, 0.7)):
        value = torch.tensor([mean, log_scale], dtype=torch.float64)
        px = Gaussian(Normal(value[0].expand_as(grid), value[1].expand_as(grid)))
        area = torch.trapezoid(px.log_prob(grid).exp(), grid)
        torch.testing.assert_close(area, torch.ones((), dtype=torch.float64))


def test_gaussian_samples_match_log_prob() -> None:
    """The mean of log p over its own samples is minus the entropy."""
    head = GaussianHead()
    with torch.no_grad():
        head.log_scale.fill_(-0.4)
    px = head(torch.randn(1, 1, 200, 200))
    x = px.sample()
    entropy = 0.5 * math.log(2 * math.pi * math.e) - 0.4
    assert px.log_prob(x).mean().item() == pytest.approx(-entropy, abs=5 * math.sqrt(0.5 / 40_000))
    assert (x - px.mean).std().item() == pytest.approx(math.exp(-0.4), rel=0.03)


@every_head
@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (1, 6), (3, 4, 4), (2, 4, 4), (3, 2, 3, 2)])
def test_heads_work_for_any_axes(head: Head, shape: tuple[int, ...]) -> None:
    raw = torch.randn(2, head.raw_channels(shape[0]), *shape[1:])
    x = torch.randint(0, 256, (2, *shape)) / 255
    px = head(raw)
    assert px.mean.shape == px.sample().shape == x.shape
    log_prob = px.log_prob(x)
    one_for_a_pixel = isinstance(head, LogisticMixtureHead) and shape[0] == 3
    assert log_prob.shape == (2, 1 if one_for_a_pixel else shape[0], *shape[1:])


@every_head
def test_heads_are_float32_or_better(head: Head) -> None:
    low = torch.zeros(2, head.raw_channels(3), 4, 4, dtype=torch.bfloat16)
    for raw, dtype in ((low, torch.float32), (low.double(), torch.float64)):
        px, x = head(raw), torch.zeros(2, 3, 4, 4, dtype=dtype)
        assert px.mean.dtype == px.sample().dtype == px.log_prob(x).dtype == dtype


@every_head
@pytest.mark.parametrize("size", [1.0, 100.0, 1e6])
def test_extremes_stay_finite(head: Head, size: float) -> None:
    """Means far away, tiny and huge scales, certain logits: in value and in gradient."""
    raw = (size * torch.randn(64, head.raw_channels(3), 4)).requires_grad_()
    x = torch.tensor([0, 1, 128, 255]).expand(64, 3, 4) / 255
    px = head(raw)
    log_prob = px.log_prob(x)
    assert log_prob.isfinite().all()
    (gradient,) = torch.autograd.grad(log_prob.sum(), raw)
    assert gradient.isfinite().all()
    assert px.mean.isfinite().all()
    assert px.sample().isfinite().all()
    if not isinstance(head, GaussianHead):
        for values in (px.mean, px.sample()):
            assert values.min() >= 0
            assert values.max() <= 1 + 1e-6


@every_head
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_those_of_the_values(head: Head, channels: int) -> None:
    raw = torch.randn(2, head.raw_channels(channels), 2, dtype=torch.float64, requires_grad=True)
    x = torch.randint(0, 256, (2, channels, 2)).double() / 255
    x[0, :, 0], x[1, :, 0] = 0.0, 1.0
    # along a random direction: a categorical has many parameters
    assert torch.autograd.gradcheck(lambda r: head(r).log_prob(x), raw, fast_mode=True)


def use(head: Head, raw: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    px = head(raw)
    return px.log_prob(x), px.mean, px.sample()


COMPILED = [*(LIKELIHOODS[kind]() for kind in LIKELIHOODS), GaussianHead(0.3), MIXED[-1]]


@pytest.mark.parametrize("head", COMPILED, ids=named)
def test_compiles_to_one_graph(head: Head) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(use, backend=backend, fullgraph=True, dynamic=False)
    raw, x = torch.randn(2, head.raw_channels(3), 4), torch.rand(2, 3, 4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        eager = use(head, raw, x)
        torch.manual_seed(seed)
        for ours, theirs in zip(compiled(head, raw, x), eager, strict=True):
            assert torch.equal(ours, theirs)
    assert len(graphs) == 1


@every_head
def test_works_without_values(head: Head) -> None:
    raw, x = torch.zeros(2, head.raw_channels(3), 4), torch.zeros(2, 3, 4)
    bare = use(copy.deepcopy(head).to("meta"), raw.to("meta"), x.to("meta"))
    assert [v.shape for v in bare] == [v.shape for v in use(head, raw, x)]
    assert all(v.is_meta for v in bare)


def test_gaussian_scales() -> None:
    x, mean, log_scale = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))
    for head, raw, expected in (
        (GaussianHead(0.3), mean, torch.full_like(mean, math.log(0.3))),
        (GaussianHead("pixel"), torch.cat((mean, log_scale), 1), log_scale),
        (GaussianHead("pixel"), torch.cat((mean, log_scale - 99), 1), torch.full_like(mean, -7)),
    ):
        truth = torch.distributions.Normal(mean, expected.exp()).log_prob(x)
        torch.testing.assert_close(head(raw).log_prob(x), truth)
    assert not list(GaussianHead(0.3).parameters())
    assert not list(GaussianHead("pixel").parameters())


def test_pixel_gaussians_integrate_to_one() -> None:
    raw = torch.randn(1, 2, 6, dtype=torch.float64)
    grid = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    x = grid.view(-1, 1, 1).expand(-1, 1, 6)
    area = torch.trapezoid(GaussianHead("pixel")(raw).log_prob(x).exp(), grid, dim=0)
    torch.testing.assert_close(area, torch.ones_like(area))


@pytest.mark.parametrize("bits", [8, 5, 1])
def test_categorical_is_torchs_and_sums_to_one(bits: int) -> None:
    head, levels = CategoricalHead(bits), 2**bits
    raw = 3 * torch.randn(1, head.raw_channels(2), 4, dtype=torch.float64)
    truth = torch.distributions.Categorical(logits=raw.view(1, 2, levels, 4).movedim(2, -1))
    level = torch.arange(levels, dtype=torch.float64)
    x = (level / (levels - 1)).view(-1, 1, 1).expand(-1, 2, 4)
    log_prob = head(raw.expand(levels, -1, -1)).log_prob(x)
    torch.testing.assert_close(log_prob, truth.log_prob(level.view(-1, 1, 1).expand(-1, 2, 4)))
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(head(raw).mean[0], (log_prob.exp() * x).sum(0))


def test_categorical_samples_match_log_prob() -> None:
    n, head = 60_000, CategoricalHead(3)
    raw = torch.randn(1, 8)
    x = head(raw.expand(n, -1)).sample()
    p = raw[0].softmax(0)
    level = (7 * x).round()
    assert torch.equal(level / 7, x)
    seen = torch.bincount(level.flatten().long(), minlength=8) / n
    assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_the_learned_scale_gets_a_gradient() -> None:
    head = GaussianHead()
    head(torch.zeros(2, 1, 3, 3)).log_prob(torch.ones(2, 1, 3, 3)).sum().backward()
    assert head.log_scale.grad is not None
    # d/ds of -r^2 exp(-2s)/2 - s at r = 1, s = 0 is r^2 - 1 = 0; at r = 2 it is 3 a pixel
    head.zero_grad()
    head(torch.zeros(1, 1, 1, 1)).log_prob(torch.full((1, 1, 1, 1), 2.0)).sum().backward()
    assert head.log_scale.grad.item() == pytest.approx(3.0)


def test_bernoulli_head_takes_logits() -> None:
    logits = torch.randn(2, 1, 3, 3)
    assert torch.equal(BernoulliHead()(logits).logits, logits)


# --- configuration ------------------------------------------------------------------------------


class Model(Settings):
    likelihood: Likelihood = BernoulliSpec()


def chosen(likelihood: Any) -> Any:
    return check(Model, {"likelihood": likelihood}, under="model").likelihood


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_word_is_a_kind_with_its_defaults(kind: str) -> None:
    spec = chosen(kind)
    assert spec == chosen({"kind": kind}) == chosen(spec)
    head, bare = make_head(spec), LIKELIHOODS[kind]()
    assert type(head) is type(bare)
    assert head.raw_channels(3) == bare.raw_channels(3)
    assert getattr(head, "bins", None) == getattr(bare, "bins", None)
    model = Model(likelihood=spec)
    assert model.model_dump() == model.model_dump(mode="json") == {"likelihood": kind}
    assert to_yaml(model) == f"likelihood: {kind}\n"


@pytest.mark.parametrize(
    ("raw", "channels"),
    [
        ({"kind": "gaussian", "scale": "pixel"}, 6),
        ({"kind": "gaussian", "scale": 1}, 3),
        ({"kind": "gaussian", "scale": 0.25}, 3),
        ({"kind": "logistic", "bits": 5}, 6),
        ({"kind": "logistic", "scale": "learned", "bins": "nvae"}, 3),
        ({"kind": "logistic_mixture", "mixtures": 5, "bits": 5, "bins": "vdvae"}, 50),
        ({"kind": "categorical", "bits": 2}, 12),
    ],
)
def test_fields_reach_the_head_and_are_written_again(raw: dict[str, Any], channels: int) -> None:
    spec = chosen(raw)
    head = make_head(spec)
    assert head.raw_channels(3) == channels
    for field in ("bits", "bins"):
        if field in raw:
            assert raw[field] in head.bins
    for field in ("scale", "mixtures"):
        if field in raw:
            assert getattr(head, field) == raw[field]
    written = Model(likelihood=spec).model_dump(mode="json")
    assert written["likelihood"].items() >= raw.items()
    assert check(Model, written).likelihood == spec


@pytest.mark.parametrize(
    ("likelihood", "sentence"),
    [
        ("bernouli", ": unknown value 'bernouli'; did you mean 'bernoulli'?"),
        ({"kind": "bernouli"}, ".kind: unknown value 'bernouli'; did you mean 'bernoulli'?"),
        ({"bits": 5}, ": needs a field 'kind' that says which"),
        (5, ": should be a mapping, not 5"),
        (None, ": should be a mapping, not null"),
        ({"kind": "bernoulli", "bits": 5}, ": no field 'bits'; choose from kind"),
        ({"kind": "logistic", "bit": 5}, ": no field 'bit'; did you mean 'bits'?"),
        ({"kind": "logistic", "bits": 9}, ".bits: should be less than or equal to 8, not 9"),
        ({"kind": "logistic", "bits": 0}, ".bits: should be greater than or equal to 1, not 0"),
        (
            {"kind": "logistic", "bins": "vdva"},
            ".bins: unknown value 'vdva'; did you mean 'vdvae'?",
        ),
        (
            {"kind": "logistic", "scale": "pixels"},
            ".scale: unknown value 'pixels'; did you mean 'pixel'?",
        ),
        (
            {"kind": "logistic_mixture", "mixtures": 0},
            ".mixtures: should be greater than or equal to 1, not 0",
        ),
        *(
            (
                {"kind": "gaussian", "scale": scale},
                f".scale: should be 'learned', 'pixel' or a positive number, not {scale!r}",
            )
            for scale in (-1, 0, True, "pixels", [1], math.inf)
        ),
    ],
)
def test_a_mistake_is_one_sentence(likelihood: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen(likelihood)
    assert str(caught.value) == f"model.likelihood{sentence}"


def test_fields_can_be_laid_on_a_word() -> None:
    raw = apply_override({"likelihood": "logistic"}, "likelihood.bits=5")
    assert check(Model, raw).likelihood == chosen({"kind": "logistic", "bits": 5})
    raw = merge({"likelihood": {"kind": "logistic", "bits": 5}}, {"likelihood": "logistic"})
    assert check(Model, raw).likelihood == chosen("logistic")
    raw = apply_override({"likelihood": "logistic"}, "likelihood={kind: gaussian, scale: 2}")
    assert check(Model, raw).likelihood == GaussianSpec(scale=2.0)
