"""Declared hierarchies: what their words mean, and a sentence for each impossible one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ladder.build import build_model
from ladder.errors import UserError
from ladder.merges import Bidirectional, Concat, Direct, PrecisionWeighted, ResidualNormal
from ladder.model import HierarchicalVAE
from ladder.nets import Crop, Pad
from ladder.objectives import elbo
from ladder.priors import ConditionalNormal, LearnedNormal, StandardNormal

CONV = {"channels": 2, "resolution": 4, "width": 4}
DENSE = {"dim": 2, "hidden": [8]}


def declare(**fields: Any) -> HierarchicalVAE:
    return build_model(config={"system": "hierarchy", "shape": [1, 8, 8], **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"layers": [CONV, {**CONV, "resolution": 8}]},
            "layers[1]: resolution 8 is larger than 4 of the layer below",
        ),
        (
            {"layers": [{**CONV, "resolution": 6}, CONV]},
            "layers[1]: resolution 4 does not divide 6 of the layer below; give 1, 2, 3 or 6",
        ),
        (
            {"layers": [{**CONV, "resolution": 16}]},
            "layers[0]: resolution 16 is at least twice the 8 of the data, whose",
        ),
        (
            {"layers": [DENSE, CONV]},
            "layers[1]: convolutional, but the layer below it is dense",
        ),
        (
            {"layers": [CONV], "shape": [5]},
            "layers[0]: convolutional, but data of shape [5] have 0 space axes",
        ),
        (
            {"layers": [{**CONV, "resolution": [4, 4, 4]}]},
            "layers[0]: resolution [4, 4, 4] has 3 axes, but data of shape [1, 8, 8] have 2",
        ),
        (
            {"layers": [CONV, {**DENSE, "merge": "concat"}], "inference": "bottom_up"},
            "layers[1]: merge 'concat' does not fit inference 'bottom_up'",
        ),
        (
            {"layers": [CONV], "merge": "precision_weighted"},
            "layers[0]: merge 'precision_weighted' does not fit inference 'bottom_up'",
        ),
        (
            {"layers": [CONV, {"dim": 1}], "inference": "bidirectional"},
            "layers[1]: dim 1 cannot be split for bidirectional inference; give at least 2",
        ),
        (
            {"layers": [CONV], "kl": "closed_form"},
            "kl 'closed_form' is no bound with state 'residual'",
        ),
        (
            {"layers": [DENSE], "kl": "closed_form", "state": "skip"},
            "kl 'closed_form' is no bound with state 'skip'",
        ),
        (
            {"layers": [{**CONV, "dim": 3}]},
            "layers[0]: 'dim' is of dense layers and 'channels' of convolutional ones",
        ),
        ({"layers": [{"channels": 2, "width": 4}]}, "layers[0].resolution: missing"),
        ({"layers": [{**CONV, "blocks": -1}]}, "layers[0].blocks: should be greater than"),
        ({"layers": [{**DENSE, "merge": "concatt"}]}, "unknown value 'concatt'; did you mean"),
        ({"layers": [DENSE], "inference": "laddr"}, "inference: unknown value 'laddr'; did you"),
        ({"layers": [DENSE], "top": "learnt"}, "top: unknown value 'learnt'; did you mean"),
    ],
)
def test_impossible_declarations_are_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        declare(**fields)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_merges_are_chosen_by_model_and_by_layer() -> None:
    layers = [{**CONV, "merge": "residual_normal"}, CONV, DENSE, DENSE, DENSE]
    model = declare(inference="ladder", layers=layers)
    kinds = [type(layer.merge) for layer in model.top_down.layers.values()]
    assert kinds == [Direct, PrecisionWeighted, PrecisionWeighted, Concat, ResidualNormal]
    model = declare(inference="ladder", layers=layers, merge="concat")
    kinds = [type(layer.merge) for layer in model.top_down.layers.values()]
    assert kinds == [Direct, Concat, Concat, Concat, ResidualNormal]
    model = declare(inference="bidirectional", layers=layers)
    for layer in model.top_down.layers.values():
        assert isinstance(layer.merge, Bidirectional)


@pytest.mark.parametrize("inference", ["bottom_up", "ladder", "bidirectional"])
@pytest.mark.parametrize("layers", [[CONV, DENSE], [DENSE, DENSE], [CONV, CONV]])
def test_the_generative_model_does_not_depend_on_the_inference(
    inference: str, layers: list[dict[str, Any]]
) -> None:
    """Same parameters by name and shape, merges apart, and the same function of them."""

    def generative(model: HierarchicalVAE) -> dict[str, torch.Tensor]:
        weights = model.state_dict()
        return {
            key: value
            for key, value in weights.items()
            if key.startswith(("top_down", "likelihood")) and ".merge." not in key
        }

    one, other = declare(layers=layers), declare(layers=layers, inference=inference)
    assert {k: v.shape for k, v in generative(one).items()} == {
        k: v.shape for k, v in generative(other).items()
    }
    other.load_state_dict(generative(one), strict=False)
    torch.manual_seed(1)
    expected = one.decode(3)[0].mean
    torch.manual_seed(1)
    assert torch.equal(other.decode(3)[0].mean, expected)


@pytest.mark.parametrize("inference", ["ladder", "bidirectional"])
@pytest.mark.parametrize("merge", ["direct", "precision_weighted", "concat", "residual_normal"])
@pytest.mark.parametrize("top", ["standard", "learned", "constant"])
@pytest.mark.parametrize("layer", [CONV, DENSE], ids=["conv", "dense"])
def test_the_top_layer_may_have_any_merge(
    inference: str, merge: str, top: str, layer: dict[str, Any]
) -> None:
    layers = [layer, {**layer, "merge": merge}]
    model = declare(inference=inference, top=top, state="markov", layers=layers)
    x = torch.rand(2, 1, 8, 8)
    assert elbo(*model(x), x).loss.isfinite()


@pytest.mark.parametrize(
    ("top", "prior"),
    [("standard", StandardNormal), ("learned", LearnedNormal), ("constant", ConditionalNormal)],
)
def test_the_top_prior_is_a_choice_of_parts(top: str, prior: type[nn.Module]) -> None:
    model = declare(inference="ladder", layers=[CONV, DENSE], top=top)
    priors = [layer.prior for layer in model.top_down.layers.values()]
    assert [type(p) for p in priors] == [prior, ConditionalNormal]
    p = model.decode(4)[1]["z2"].p
    assert (p.mean[0] == p.mean).all()  # the same for all data
    if top != "constant":
        assert not p.mean.any()
        assert not p.log_scale.any()


@pytest.mark.parametrize("state", ["markov", "residual", "skip"])
def test_with_a_stream_z_depends_on_all_layers_above(state: str) -> None:
    model = declare(inference="ladder", state=state, layers=[CONV, CONV, CONV, DENSE])
    latents = model.decode(2)[1]
    given = {name: latent.z for name, latent in latents.items()}
    for name in ("z4", "z3"):
        moved = model.decode(2, {**given, name: given[name] + 1.0})[1]
        same = torch.equal(moved["z1"].p.mean, latents["z1"].p.mean)
        assert same == (state == "markov")
    moved = model.decode(2, {**given, "z2": given["z2"] + 1.0})[1]
    assert not torch.equal(moved["z1"].p.mean, latents["z1"].p.mean)


@pytest.mark.parametrize(
    ("shape", "resolution"),
    [([1, 28, 28], 16), ([3, 13, 10], 8), ([2, 7], 4), ([1, 3, 5, 6], [3, 4, 2]), ([1, 5, 5], 7)],
)
def test_any_space_is_padded_and_cropped(shape: list[int], resolution: Any) -> None:
    layers = [{**CONV, "resolution": resolution}, {"dim": 2}]
    model = declare(shape=shape, inference="ladder", layers=layers)
    px, latents = model(torch.rand(2, *shape))
    assert px.mean.shape == (2, *shape)
    space = resolution if isinstance(resolution, list) else [resolution] * (len(shape) - 1)
    assert latents["z1"].z.shape == (2, 2, *space)


@pytest.mark.parametrize(
    ("size", "padded"), [((5,), (8,)), ((3, 4), (4, 4)), ((2, 3, 4), (5, 3, 7))]
)
def test_crop_undoes_pad(size: tuple[int, ...], padded: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *size)
    wide = Pad(size, padded)(x)
    assert wide.shape == (2, 3, *padded)
    assert wide.sum() == pytest.approx(x.sum().item())
    assert torch.equal(Crop(size, padded)(wide), x)


@pytest.mark.parametrize("inference", ["bottom_up", "ladder", "bidirectional"])
@pytest.mark.parametrize("layer", [CONV, DENSE], ids=["conv", "dense"])
def test_a_hundred_layers_build_train_a_step_and_sample(
    inference: str, layer: dict[str, Any]
) -> None:
    model = declare(inference=inference, layers=[{**layer, "repeat": 100}])
    assert len(model.top_down.layers) == 100
    x = torch.rand(4, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    terms = elbo(*model(x), x)
    terms.loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert norm.isfinite()
    optimizer.step()
    assert elbo(*model(x), x).loss.isfinite()
    assert model.decode(2)[0].mean.isfinite().all()


def test_a_residual_stream_keeps_its_variance_at_depth() -> None:
    spread = {}
    for depth in (4, 64):
        torch.manual_seed(0)
        layers = [{**CONV, "width": 16, "repeat": depth}]
        model = declare(inference="ladder", activation="silu", layers=layers)
        spread[depth] = model.decode(64)[0].logits.std().item()
    assert spread[64] < 2.0 * spread[4] + 0.5
