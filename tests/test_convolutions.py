"""Convolutions chosen by shape: the same numbers and gradients as torch's own."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder import convolutions
from ladder.convolutions import Conv2d, convolve


class Case(NamedTuple):
    batch: int
    channels: int
    out: int
    size: tuple[int, int]
    kernel: int
    padding: int = 0
    dilation: int = 1
    groups: int = 1


POINTWISE = [Case(3, 4, 5, (6, 7), 1), Case(1, 4, 2, (1, 1), 1), Case(2, 1, 3, (4, 4), 1)]
DEPTHWISE = [
    Case(3, 4, 4, (6, 7), 5, padding=2, groups=4),
    Case(2, 3, 3, (1, 2), 3, padding=1, groups=3),
    Case(2, 3, 3, (9, 8), 3, padding=2, dilation=2, groups=3),
    Case(2, 3, 3, (6, 5), 3, groups=3),
]
OTHERS = [Case(2, 4, 6, (5, 5), 3, padding=1), Case(2, 4, 6, (5, 5), 3, padding=1, groups=2)]


def tensors(case: Case, layout: torch.memory_format) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(case.batch, case.channels, *case.size, dtype=torch.float64)
    weight = torch.randn(
        case.out, case.channels // case.groups, case.kernel, case.kernel, dtype=torch.float64
    )
    bias = torch.randn(case.out, dtype=torch.float64)
    return [t.requires_grad_() for t in (x.to(memory_format=layout), weight, bias)]


def both(case: Case, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    pairs = [(n, n) for n in (1, case.padding, case.dilation)]
    return convolve(*inputs, *pairs, case.groups), F.conv2d(*inputs, *pairs, case.groups)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", POINTWISE + DEPTHWISE + OTHERS)
def test_values_and_gradients_are_those_of_torch(case: Case, layout: torch.memory_format) -> None:
    inputs = tensors(case, layout)
    ours, theirs = both(case, inputs)
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, seed),
        torch.autograd.grad(theirs, inputs, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("cases", "name"), [(POINTWISE, "_pointwise"), (DEPTHWISE, "_depthwise")])
def test_shapes_have_the_way_they_should(
    cases: list[Case], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    way = getattr(convolutions, name)
    monkeypatch.setattr(convolutions, name, lambda *a: (taken.append(name), way(*a))[1])
    for case in cases:
        both(case, tensors(case, torch.channels_last))
    assert len(taken) == len(cases)


@pytest.mark.parametrize("case", [POINTWISE[0], DEPTHWISE[0]])
def test_under_autocast_results_and_gradients_are_of_the_same_kinds(case: Case) -> None:
    inputs = [t.detach().float().requires_grad_() for t in tensors(case, torch.channels_last)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = both(case, inputs)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
    for a, b in zip(
        torch.autograd.grad(ours.float().square().sum(), inputs),
        torch.autograd.grad(theirs.float().square().sum(), inputs),
        strict=True,
    ):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 0.03 * b.abs().max()


@pytest.mark.parametrize("case", [POINTWISE[0], DEPTHWISE[0]])
@pytest.mark.parametrize("low", [False, True])
def test_compiles_to_one_graph_with_the_same_gradients(case: Case, low: bool) -> None:
    inputs = [t.detach().float().requires_grad_() for t in tensors(case, torch.channels_last)]
    pairs = [(n, n) for n in (1, case.padding, case.dilation)]

    def loss(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            return convolve(*inputs, *pairs, case.groups).float().square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)
    found = [torch.autograd.grad(f(*inputs), inputs) for f in (loss, compiled)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_maps_may_have_no_values() -> None:
    module = Conv2d(4, 4, 5, padding=2, groups=4).to("meta")
    assert module(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 4, 8, 8)


def test_names_and_settings_are_torchs() -> None:
    torch.manual_seed(0)
    ours = Conv2d(3, 5, 3, stride=2, padding=1, padding_mode="reflect")
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode="reflect")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("case", [POINTWISE[0], DEPTHWISE[0]])
def test_gradients_by_datum_can_be_taken(case: Case) -> None:
    x, weight, bias = (t.detach() for t in tensors(case, torch.channels_last))
    pairs = [(n, n) for n in (1, case.padding, case.dilation)]

    def loss(w: Tensor, datum: Tensor) -> Tensor:
        return convolve(datum[None], w, bias, *pairs, case.groups).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for i in range(case.batch):
        torch.testing.assert_close(each[i], torch.func.grad(loss)(weight, x[i]))


def test_gradients_have_gradients() -> None:
    x, weight, bias = tensors(DEPTHWISE[0], torch.contiguous_format)
    assert torch.autograd.gradgradcheck(
        lambda a, b: convolve(a, b, bias, (1, 1), (2, 2), (1, 1), 4), (x[:1, :, :3, :2], weight)
    )
