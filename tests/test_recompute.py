"""Layers computed twice: the same numbers, less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ladder.build import build_model, resolve
from ladder.objectives import elbo
from ladder.recompute import set_recompute
from ladder.train.plan import plan

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
    model = build_model(**MODELS[name]).train()
    x = torch.rand(4, *model.config.shape)
    kept: dict[bool, int] = {}
    for on in (False, True):
        set_recompute(model, on)
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            elbo(*model(x), x).loss.detach()
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


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
