"""Encoding, sampling, decoding from the top, reconstructing, interpolating, swapping, varying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ladder import sampling, walks
from ladder.batch_axis import joined
from ladder.build import build_model
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.model import HierarchicalVAE, temperature_of
from ladder.noise import seeded
from ladder.pretrained import save_pretrained
from ladder.report import samples

NAMES = ["z3", "z2", "z1"]
DENSE = {"layers": [{"dim": 3, "hidden": [8], "repeat": 3}]}
CONV = {
    "layers": [
        {"channels": 2, "resolution": [3, 4], "width": 4, "repeat": 2},
        {"dim": 2, "hidden": [5]},
    ]
}
KINDS: dict[str, dict[str, Any]] = {
    "bottom_up": DENSE,
    "ladder": {**DENSE, "inference": "ladder", "state": "skip"},
    "bidirectional": {**DENSE, "inference": "bidirectional", "state": "residual"},
    "conv_ladder": {**CONV, "inference": "ladder"},
    "conv_bidirectional": {**CONV, "inference": "bidirectional"},
}


LIKELIHOODS = [
    "bernoulli",
    "gaussian",
    {"kind": "gaussian", "scale": "pixel"},
    {"kind": "logistic", "scale": "learned"},
    {"kind": "logistic_mixture", "mixtures": 2},
    {"kind": "categorical", "bits": 2},
]


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> HierarchicalVAE:
    """Three layers of every kind, z3 above z2 above z1."""
    config = {"system": "hierarchy", "shape": [1, 3, 4], **KINDS[request.param]}
    built = build_model(config=config).double().eval()
    with torch.no_grad():
        for weight in built.parameters():  # so that no level starts out silent
            weight.add_(0.2 * torch.randn_like(weight))
    return built


def three_layers() -> HierarchicalVAE:
    """All latents have one size, so that noise used twice would show."""
    model = build_model(config={"system": "hierarchy", "shape": [1, 3, 4], **DENSE})
    return model.double().eval()


def data(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 3, 4, dtype=torch.float64)


CALLS: dict[str, Callable[[HierarchicalVAE, Tensor, int | None], Tensor]] = {
    "encode": lambda m, x, s: sampling.encode(m, x, s)["z1"].z,
    "sample": lambda m, x, s: sampling.sample(m, 4, seed=s).mean,
    "sample_in_chunks": lambda m, x, s: sampling.sample(m, 4, seed=s, chunk=3).mean,
    "decode": lambda m, x, s: sampling.decode(m, {"z3": torch.ones(4, 3).to(x)}, seed=s).mean,
    "reconstruct": lambda m, x, s: sampling.reconstruct(m, x, 2, 1.0, seed=s).mean,
    "interpolate": lambda m, x, s: sampling.interpolate(m, x[0], x[1], ["z2"], seed=s).mean,
    "draw_prior": lambda m, x, s: sampling.draw_prior(m, 4, {"z2": 0.5}, seed=s)["z1"].z,
    "swap": lambda m, x, s: sampling.swap(m, x[:2], x[2:], 2, seed=s).mean,
    "swap_with_latents": lambda m, x, s: (
        sampling.swap(m, x, sampling.encode(m, x, 1), ["z1"], seed=s).mean
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_seed_reproduces_and_leaves_the_generator_alone(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    model, x = three_layers(), data()
    before = torch.get_rng_state()
    first = call(model, x, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, call(model, x, 7))
    assert not torch.equal(first, call(model, x, 8))


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_without_a_seed_the_generator_goes_on(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    model, x = three_layers(), data()
    torch.manual_seed(1)
    first, second = call(model, x, None), call(model, x, None)
    torch.manual_seed(1)
    assert torch.equal(first, call(model, x, None))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_no_gradient_and_the_mode_is_kept(
    call: Callable[[HierarchicalVAE, Tensor, int | None], Tensor],
) -> None:
    for mode in (True, False):
        model = three_layers().train(mode)
        assert not call(model, data(), 0).requires_grad
        assert model.training is mode


def test_layer_names_go_from_the_top() -> None:
    assert sampling.layer_names(three_layers()) == ["z3", "z2", "z1"]


def test_encode_is_the_forward_pass() -> None:
    model, x = three_layers(), data()
    latents = sampling.encode(model, x, seed=3)
    torch.manual_seed(3)
    for name, latent in model(x)[1].items():
        assert torch.equal(latents[name].z, latent.z)
        assert torch.equal(sampling.posterior_means(latents)[name], latent.q.mean)


def test_temperature_zero_needs_no_seed() -> None:
    model = three_layers()
    first = sampling.sample(model, 3, temperature=0.0).mean
    assert torch.equal(first, sampling.sample(model, 3, temperature=0.0).mean)
    torch.testing.assert_close(first, first[:1].expand_as(first))


def test_decoding_all_latents_draws_nothing() -> None:
    model, x = three_layers(), data()
    torch.manual_seed(3)
    px, latents = model(x)
    state = torch.get_rng_state()
    again = sampling.decode(model, {name: latent.z for name, latent in latents.items()})
    assert torch.equal(px.mean, again.mean)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("top", [1, 2, 3])
def test_reconstruct_keeps_exactly_the_top(monkeypatch: pytest.MonkeyPatch, top: int) -> None:
    model, x = three_layers(), data()
    kept: list[dict[str, Tensor]] = []
    decode = HierarchicalVAE.decode

    def spy(self: HierarchicalVAE, n: int, z: dict[str, Tensor], *rest: float) -> object:
        kept.append(dict(z))
        return decode(self, n, z, *rest)

    monkeypatch.setattr(HierarchicalVAE, "decode", spy)
    found = sampling.reconstruct(model, x, top=top, seed=5)
    latents = sampling.encode(model, x, seed=5)
    assert list(kept[0]) == ["z3", "z2", "z1"][:top]
    assert all(torch.equal(z, latents[name].z) for name, z in kept[0].items())
    by_hand = decode(model, 4, kept[0], 0.0)[0]
    assert torch.equal(found.mean, by_hand.mean)


def test_reconstruct_keeps_all_by_default() -> None:
    model, x = three_layers(), data()
    torch.manual_seed(5)
    px, _ = model(x)
    assert torch.equal(sampling.reconstruct(model, x, seed=5).mean, px.mean)


def test_reconstruct_uses_no_noise_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the latents drawn from their priors would depend on those kept beyond p(z_l | z_>l).
    drawn: list[Tensor] = []
    randn_like = torch.randn_like

    def spy(like: Tensor, **options: Any) -> Tensor:
        drawn.append(randn_like(like, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn_like", spy)
    sampling.reconstruct(three_layers(), data(), top=1, temperature=1.0, seed=5)
    assert len(drawn) == 5  # three posteriors, two priors
    for i, noise in enumerate(drawn):
        assert not any(torch.equal(noise, other) for other in drawn[:i])


@pytest.mark.parametrize("levels", [["z3"], ["z1"], ["z3", "z1"], ["z1", "z2", "z3"]])
def test_interpolation_ends_at_the_posterior_means(levels: list[str]) -> None:
    model, x = three_layers(), data(2)
    walk = sampling.interpolate(model, x[0], x[1], levels, steps=5, seed=2).mean
    means = sampling.posterior_means(sampling.encode(model, x, seed=2))
    ends = sampling.decode(model, {name: means[name] for name in levels}, temperature=0.0).mean
    assert walk.shape == (5, 1, 3, 4)
    torch.testing.assert_close(walk[[0, -1]], ends, rtol=1e-12, atol=1e-12)
    middle = {name: means[name].mean(dim=0, keepdim=True) for name in levels}
    torch.testing.assert_close(
        walk[2:3], sampling.decode(model, middle, temperature=0.0).mean, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_model_s_dtype(dtype: torch.dtype) -> None:
    model, x = three_layers().to(dtype), data().to(dtype)
    for call in CALLS.values():
        assert call(model, x, 0).dtype == dtype


@pytest.mark.parametrize("level", NAMES)
def test_a_temperature_changes_its_level_and_those_below(
    model: HierarchicalVAE, level: str
) -> None:
    before = sampling.draw_prior(model, 4, seed=3)
    after = sampling.draw_prior(model, 4, {level: 0.5}, seed=3)
    for name in NAMES:
        above = name > level
        assert torch.equal(before[name].z, after[name].z) is above
        assert torch.equal(before[name].p.mean, after[name].p.mean) is (name >= level)
    noise = before[level].z - before[level].p.mean
    torch.testing.assert_close(after[level].z - after[level].p.mean, 0.5 * noise)


@pytest.mark.parametrize("t", [0.0, 0.7, 1.0])
def test_one_temperature_is_that_of_every_level(model: HierarchicalVAE, t: float) -> None:
    one = sampling.sample(model, 4, t, seed=3).mean
    tensor = torch.tensor(t, dtype=torch.float64)
    same = [dict.fromkeys(NAMES, t), dict.fromkeys(NAMES, tensor), tensor]
    same += [{}, {"z2": 1}] if t == 1.0 else []
    for temperature in same:
        assert torch.equal(one, sampling.sample(model, 4, temperature, seed=3).mean)


def test_a_level_at_temperature_zero_is_at_the_mean_of_its_prior(model: HierarchicalVAE) -> None:
    cold = sampling.draw_prior(model, 4, {"z2": 0.0}, seed=3)
    assert torch.equal(cold["z2"].z, cold["z2"].p.mean)
    assert not torch.equal(cold["z1"].z, cold["z1"].p.mean)


@pytest.mark.parametrize("given", [["z3"], ["z3", "z2"], ["z2"], ["z1"], NAMES])
def test_the_rest_is_at_its_mean_or_drawn(model: HierarchicalVAE, given: list[str]) -> None:
    latents = sampling.encode(model, data(), seed=1)
    z = {name: latents[name] for name in given}
    at_mean = sampling.decode(model, z, rest="mean", seed=2).mean
    assert torch.equal(at_mean, sampling.decode(model, z, 0.0, seed=2).mean)
    assert torch.equal(at_mean, sampling.decode(model, z, rest="mean", seed=3).mean)
    drawn = [sampling.decode(model, z, seed=s).mean for s in (2, 2, 3)]
    assert torch.equal(drawn[0], drawn[1])
    markov = model.config.inference == "bottom_up"  # the others' states pass all of z on
    if given != NAMES and not (markov and given == ["z1"]):
        assert not torch.equal(drawn[0], drawn[2])


def test_the_top_latents_are_the_highest() -> None:
    model, x = three_layers(), data()
    latents = sampling.encode(model, x, seed=1)
    for k in (1, 2, 3):
        assert list(sampling.top_latents(latents, k)) == NAMES[:k]
    ascending = dict(reversed(latents.items()))
    assert list(sampling.top_latents(ascending, 2)) == NAMES[:2]
    assert list(sampling.top_latents({f"z{i}": i for i in range(1, 13)}, 3).values()) == [
        12,
        11,
        10,
    ]
    z = sampling.top_latents(latents, 2)
    kept = sampling.reconstruct(model, x, top=2, seed=1).mean
    assert torch.equal(sampling.decode(model, z, rest="mean").mean, kept)


@pytest.mark.parametrize("seed", [5, None])
def test_swapping_all_or_nothing_is_a_reconstruction(
    model: HierarchicalVAE, seed: int | None
) -> None:
    a, b = data(), data()

    def same(found: Tensor, x: Tensor) -> bool:
        with seeded(9):
            return torch.equal(found, sampling.reconstruct(model, x, seed=seed).mean)

    def swap(a: Tensor, b: Tensor, levels: int | list[str]) -> Tensor:
        with seeded(9):
            return sampling.swap(model, a, b, levels, seed=seed).mean

    assert same(swap(a, b, 3), a)
    assert same(swap(a, b, NAMES), a)
    assert same(swap(a, b, 0), b)
    assert same(swap(a, b, []), b)
    assert same(swap(a, a, ["z2"]), a)
    assert not same(swap(a, b, 3), b)


def test_a_swap_takes_the_levels_named(model: HierarchicalVAE) -> None:
    a, b = data(), data()
    of_a, of_b = (sampling.encode(model, x, seed=4) for x in (a, b))
    state = torch.get_rng_state()
    for levels in (["z3"], ["z3", "z2"], ["z1"], ["z2"]):
        z = {name: of_a[name] if name in levels else of_b[name] for name in NAMES}
        found = sampling.swap(model, a, b, levels, seed=4).mean
        assert torch.equal(found, sampling.decode(model, z).mean)
        assert torch.equal(found, sampling.swap(model, of_a, of_b, levels).mean)
        assert torch.equal(found, sampling.swap(model, of_a, b, levels, seed=4).mean)
    assert torch.equal(state, torch.get_rng_state())
    for k in range(4):
        by_number = sampling.swap(model, a, b, k, seed=4).mean
        assert torch.equal(by_number, sampling.swap(model, a, b, NAMES[:k], seed=4).mean)


@pytest.mark.parametrize("path", ["line", "arc"])
@pytest.mark.parametrize("levels", [["z3"], ["z2"], ["z2", "z1"], NAMES])
def test_every_walk_ends_at_the_posterior_means(
    model: HierarchicalVAE, levels: list[str], path: Any
) -> None:
    x = data(2)
    walk = sampling.interpolate(model, x[0], x[1], levels, 5, seed=2, path=path).mean
    means = sampling.posterior_means(sampling.encode(model, x, seed=2))
    ends = sampling.decode(model, {name: means[name] for name in levels}, rest="mean").mean
    assert walk.shape == (5, 1, 3, 4)
    torch.testing.assert_close(walk[[0, -1]], ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_an_arc_between_equal_lengths_keeps_them_and_turns_evenly(shape: tuple[int, ...]) -> None:
    start, end = torch.randn(2, *shape, dtype=torch.float64)
    end = end * (start.norm() / end.norm())
    arc = walks.arc(start, end, 7)
    torch.testing.assert_close(arc.flatten(1).norm(dim=1), start.norm().expand(7))
    turns = torch.cosine_similarity(arc[1:].flatten(1), arc[:-1].flatten(1))
    torch.testing.assert_close(turns, turns[:1].expand(6))
    torch.testing.assert_close(arc[[0, -1]], torch.stack([start, end]))
    middle = walks.line(start, end, 3)[1]
    torch.testing.assert_close(middle, 0.5 * (start + end))


def test_an_arc_without_an_angle_is_a_line() -> None:
    start = torch.randn(2, 3, 4, dtype=torch.float64)
    for end in (2.0 * start, -start, start, torch.zeros_like(start)):
        arc = walks.arc(start, end, 5)
        assert arc.isfinite().all()
        torch.testing.assert_close(arc[[0, -1]], torch.stack([start, end]))


def test_one_unit_varies_and_the_rest_follows(model: HierarchicalVAE) -> None:
    z = sampling.top_latents(sampling.encode(model, data(1), seed=1), 2)
    before = {name: latent.z.clone() for name, latent in z.items()}
    state = torch.get_rng_state()
    values = [-1.0, 0.0, 2.0]
    found = sampling.vary(model, z, "z2", 1, values).mean
    assert torch.equal(state, torch.get_rng_state())
    for value, row in zip(values, found, strict=True):
        by_hand = {name: tensor.clone() for name, tensor in before.items()}
        by_hand["z2"][:, 1] = value
        expected = sampling.decode(model, by_hand, rest="mean").mean[0]
        torch.testing.assert_close(row, expected)
    assert not torch.equal(found[0], found[1])
    assert all(torch.equal(latent.z, before[name]) for name, latent in z.items())


def test_one_place_of_a_channel_varies() -> None:
    model = build_model(config={"system": "hierarchy", "shape": [1, 3, 4], **CONV}).eval()
    z = {"z1": torch.zeros(1, 2, 3, 4)}
    found = sampling.vary(model, z, "z1", (1, 2, 3), torch.tensor([0.0, 5.0])).mean
    z["z1"][0, 1, 2, 3] = 5.0
    torch.testing.assert_close(found[1:], sampling.decode(model, z, rest="mean").mean)


@pytest.mark.parametrize("model", ["bottom_up", "conv_bidirectional"], indirect=True)
def test_a_mapping_of_temperatures_compiles_to_one_graph(model: HierarchicalVAE) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def decode(t1: Tensor, t2: Tensor) -> tuple[Any, dict[str, Latent]]:
        return model.decode(4, temperature={"z1": t1, "z2": t2})

    compiled = torch.compile(decode, backend=backend, fullgraph=True, dynamic=False)
    for t1, t2 in ((0.5, 0.7), (0.0, 1.0)):
        temperatures = [torch.tensor(t, dtype=torch.float64) for t in (t1, t2)]
        with torch.no_grad(), seeded(1):
            found = compiled(*temperatures)[0].mean
        assert torch.equal(found, sampling.sample(model, 4, {"z1": t1, "z2": t2}, seed=1).mean)
    assert len(graphs) == 1


@torch.no_grad()
def test_graphs_of_a_compiled_layer_do_not_grow_with_temperatures_of_more_levels() -> None:
    counts = []
    for repeat in (4, 12):
        torch._dynamo.reset()
        graphs: list[torch.fx.GraphModule] = []

        def backend(
            graph: torch.fx.GraphModule, _: list[Tensor], seen: list[Any] = graphs
        ) -> Callable[..., Any]:
            seen.append(graph)
            return graph.forward

        layers = [{"dim": 4, "hidden": [8], "repeat": repeat}]
        model = build_model(config={"system": "hierarchy", "shape": [4], "layers": layers})
        for layer in model.top_down.layers.values():
            layer.compile(backend=backend, fullgraph=True, dynamic=False)
        ramp = torch.linspace(0.1, 1.0, repeat)
        model.decode(2, temperature={f"z{i}": t for i, t in enumerate(ramp[1:], start=2)})
        counts.append(len(graphs))
    assert counts[0] == counts[1] <= 3  # the top, those named, and the one that is not


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_chunks_are_draws_one_after_another(likelihood: Any) -> None:
    config = {"system": "hierarchy", "shape": [3, 4, 4], "likelihood": likelihood, **DENSE}
    model = build_model(config=config).eval()
    found = sampling.sample(model, 7, 0.5, seed=1, chunk=3)
    with seeded(1):
        parts = [sampling.sample(model, n, 0.5) for n in (3, 3, 1)]
    assert type(found) is type(parts[0])
    torch.testing.assert_close(found.mean, torch.cat([part.mean for part in parts]))
    x = torch.rand(7, 3, 4, 4)
    by_parts = [p.log_prob(rows) for p, rows in zip(parts, x.split(3), strict=True)]
    torch.testing.assert_close(found.log_prob(x), torch.cat(by_parts))


def test_no_more_than_a_chunk_passes_through_the_model() -> None:
    model = three_layers()
    sizes: list[int] = []
    model.top_down.register_forward_hook(lambda _, args, __: sizes.append(args[0]))
    sampling.sample(model, 11, chunk=4)
    assert sizes == [4, 4, 3]


def test_many_samples_are_written_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(preset="tiny_vdvae").eval()
    save_pretrained(model, tmp_path)
    monkeypatch.setattr(samples, "AT_ONCE", 2)
    out = samples.write_samples(tmp_path, 5, 0.7, seed=3, out=tmp_path / "a.npy")
    expected = sampling.sample(model, 5, 0.7, seed=3, chunk=2).mean
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)
    with pytest.raises(UserError, match="sample: n=-2 should be at least 1"):
        samples.write_samples(tmp_path, -2)


def test_what_hides_its_tensors_cannot_be_joined() -> None:
    with pytest.raises(UserError, match="a object cannot be joined; make it a NamedTuple"):
        joined([object(), object()])


def test_layers_that_a_mapping_does_not_name_have_temperature_one() -> None:
    assert temperature_of("z2", {"z1": 0.5}) == 1.0
    assert temperature_of("z1", {"z1": 0.5}) == temperature_of("z7", 0.5) == 0.5


BAD = [-1, -0.1, float("nan"), float("inf"), "hot", None, torch.tensor([0.5, -0.5])]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_wrong_temperature_has_its_sentence(bad: Any) -> None:
    model, x = three_layers(), data()
    z = {"z3": torch.zeros(2, 3, dtype=torch.float64)}
    wrong = r".* should be a finite number, 0 or above"
    calls: list[Callable[[Any], object]] = [
        lambda t: sampling.sample(model, 2, t),
        lambda t: sampling.draw_prior(model, 2, t),
        lambda t: sampling.decode(model, z, t),
        lambda t: sampling.reconstruct(model, x, 2, t),
    ]
    for call in calls:
        with pytest.raises(UserError, match="^temperature: " + wrong):
            call(bad)
        with pytest.raises(UserError, match="^temperature of z2: " + wrong):
            call({"z1": 0.5, "z2": bad})
        with pytest.raises(UserError, match=r"no layer 'z33'; did you mean 'z3'\?"):
            call({"z33": 0.5})


def test_mistakes_have_their_sentence() -> None:
    model, x = three_layers(), data()
    z = {"z33": torch.zeros(2, 3, dtype=torch.float64)}
    with pytest.raises(UserError, match=r"no layer 'z33'; did you mean 'z3'\?"):
        sampling.decode(model, z)
    with pytest.raises(UserError, match="no layer 'top'; choose from z1, z2, z3"):
        sampling.interpolate(model, x[0], x[1], ["z2", "top"])
    with pytest.raises(UserError, match="no latent is given"):
        sampling.decode(model, {})
    for top in (0, 4, -1):
        with pytest.raises(UserError, match=f"top={top} is not between 1 and 3"):
            sampling.reconstruct(model, x, top=top)
    for k in (0, 4):
        with pytest.raises(UserError, match=f"k={k} is not between 1 and 3"):
            sampling.top_latents(sampling.encode(model, x), k)
    for n in (0, -2):
        with pytest.raises(UserError, match=f"sample: n={n} should be at least 1"):
            sampling.sample(model, n)
        with pytest.raises(UserError, match=f"sample: chunk={n} should be at least 1"):
            sampling.sample(model, 3, chunk=n)
    with pytest.raises(UserError, match="steps=1 should be at least 2"):
        sampling.interpolate(model, x[0], x[1], ["z2"], steps=1)
    with pytest.raises(UserError, match="interpolate: no level is named"):
        sampling.interpolate(model, x[0], x[1], [])
    with pytest.raises(UserError, match=r"path='spiral' should be 'line' or 'arc'"):
        sampling.interpolate(model, x[0], x[1], ["z2"], path="spiral")  # type: ignore[arg-type]


def test_wrong_decodes_swaps_and_units_have_their_sentence() -> None:
    model, x = three_layers(), data()
    z = sampling.encode(model, x[:1])
    with pytest.raises(UserError, match="rest='mode' should be 'prior' or 'mean'"):
        sampling.decode(model, z, rest="mode")  # type: ignore[arg-type]
    for temperature in (0.5, {"z1": 0.5}, torch.tensor(0.5)):
        with pytest.raises(UserError, match="rest='mean' draws nothing"):
            sampling.decode(model, z, temperature, rest="mean")
    for levels in (-1, 4):
        with pytest.raises(UserError, match=f"swap: levels={levels} is not between 0 and 3"):
            sampling.swap(model, x, x, levels)
    with pytest.raises(UserError, match="no layer 'top'; choose from z1, z2, z3"):
        sampling.swap(model, x, x, ["top"])
    with pytest.raises(UserError, match=r"swap: a has shape \[4, 1, 3, 4\] and b \[2, 1, 3, 4\]"):
        sampling.swap(model, x, x[:2], 1)
    with pytest.raises(UserError, match="swap: neither gives z1; give what encode returns"):
        sampling.swap(model, z, sampling.top_latents(z, 2), 1)
    with pytest.raises(UserError, match="vary: z holds no 'z1'"):
        sampling.vary(model, sampling.top_latents(z, 2), "z1", 0, [0.0])
    with pytest.raises(UserError, match="vary: z should hold the latents of one datum"):
        sampling.vary(model, sampling.encode(model, x), "z1", 0, [0.0])
    for unit in (3, -1, (0, 0), ()):
        with pytest.raises(UserError, match=r"the latents of z1 have shape \[3\]"):
            sampling.vary(model, z, "z1", unit, [0.0])
