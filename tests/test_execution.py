"""Layers computed twice or compiled one by one: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ladder.build import build_model, resolve
from ladder.execution import called_layers, compile_layers, set_recompute
from ladder.objectives import elbo
from ladder.train.plan import _trace, plan

CONV = {"channels": 2, "resolution": 4, "width": 4, "repeat": 3}
MODELS: dict[str, dict[str, Any]] = {
    "vdvae": {"preset": "tiny_vdvae"},
    "batch norm": {"preset": "tiny_lvae_conv"},
    **{
        inference: {
            "config": {
                "system": "hierarchy",
                "shape": [1, 8, 8],
                "inference": inference,
                "layers": [CONV],
            }
        }
        for inference in ("bottom_up", "ladder", "bidirectional")
    },
}
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_gradients_and_statistics_are_the_same(name: str) -> None:
    model = build_model(**MODELS[name]).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    x = torch.rand(4, *model.config.shape)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for on in (False, True):
        model.load_state_dict(start)
        model.zero_grad()
        set_recompute(model, on)
        torch.manual_seed(1)
        loss = elbo(*model(x), x).loss
        loss.backward()
        gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
        state = {key: value.clone() for key, value in model.state_dict().items()}
        found.append((loss.detach(), gradients, state, torch.rand(3)))
    (loss, gradients, state, after), (loss2, gradients2, state2, after2) = found
    assert torch.equal(loss, loss2)
    assert torch.equal(after, after2)  # as much noise was drawn
    assert all(torch.equal(gradients[key], gradients2[key]) for key in gradients)
    assert all(torch.equal(state[key], state2[key]) for key in state)


@every_model
def test_less_is_kept(name: str) -> None:
    """What autograd saves, and the inputs of layers that are computed again."""
    kept = {}
    for on in (False, True):
        model = build_model(**MODELS[name]).train()
        set_recompute(model, on)
        kept[on] = _trace(model, torch.rand(4, *model.config.shape))[1]
    assert 0 < kept[True] < 0.8 * kept[False]


@pytest.mark.parametrize("how", ["autocast", "compiled"])
def test_gradients_are_the_same_under(how: str) -> None:
    torch._dynamo.reset()
    scales = [{"resolution": 8, "layers": 1}, {"resolution": 4, "layers": 1}]
    model = build_model("tiny_vdvae", scales=scales)
    x = torch.rand(4, 1, 8, 8)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            px, latents = model(x)
        return elbo(px, latents, x).loss

    found = []
    for on in (False, True):
        set_recompute(model, on)
        # Not the backend "eager", in which dynamo computes a layer again with other noise.
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        call = compiled if how == "compiled" else loss
        torch.manual_seed(1)
        found.append(torch.autograd.grad(call(x), list(model.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


# Dynamo looks at `.grad` of what a layer is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", [*MODELS, "published plan"])
def test_layers_compiled_one_by_one_compute_the_same(name: str) -> None:
    torch._dynamo.reset()
    narrow = {"preset": "vdvae_cifar10", "width": 8, "zdim": 2}
    model = build_model(**MODELS.get(name, narrow)).eval()
    x = torch.rand(2, *model.config.shape)
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    found, names = [], list(model.state_dict())
    for compiled in (False, True):
        if compiled:
            compile_layers(model, backend)
        torch.manual_seed(1)
        loss = elbo(*model(x), x).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
    assert list(model.state_dict()) == names
    layers = called_layers(model)
    assert 0 < len(graphs) <= len(layers)
    if name == "published plan":
        assert len(layers) == 43 + 33
        assert len(graphs) <= 22  # five scales: at most two kinds of layers and blocks, and more


def test_without_gradients_nothing_changes() -> None:
    model = build_model("tiny_vdvae")
    x = torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        found = []
        for on in (False, True):
            set_recompute(model, on)
            torch.manual_seed(1)
            found.append(model(x)[0].mean)
    assert torch.equal(*found)


def test_a_plan_counts_what_is_kept() -> None:
    memory = {}
    for on in ("false", "true"):
        config = resolve("vdvae_cifar10", [f"train.recompute={on}", "data=digits"])
        memory[on] = plan(config)["memory_mib"]["activations"]
    assert 0 < memory["true"] < memory["false"] / 5
