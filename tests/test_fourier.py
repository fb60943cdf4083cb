"""Convolutions by Fourier transforms are convolutions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.fourier import convolve
from ladder.systems.biva.normed import Conv


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("space", [(4, 4), (5, 7), (1, 3)])
def test_values_and_gradients_are_those_of_a_convolution(
    kernel: int, space: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *space, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    before, after = (kernel - 1) // 2, kernel // 2
    plain = F.conv2d(F.pad(x, (before, after, before, after)), weight)
    ours = convolve(x, weight, before)
    torch.testing.assert_close(ours, plain)
    seed = torch.randn_like(plain)
    for one, two in zip(
        *(torch.autograd.grad(y, (x, weight), seed) for y in (ours, plain)), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_autocast_does_not_lower_its_precision() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = convolve(x.bfloat16(), weight, 3)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, convolve(x.bfloat16().float(), weight, 3))


@pytest.mark.parametrize("n", [2, 32])
def test_a_large_kernel_of_biva_is_the_same_for_few_and_for_many(n: int) -> None:
    """It changes the way at some number of data, and nothing else."""
    torch.manual_seed(0)
    conv = Conv(3, 4, 8).double()
    x = torch.randn(n, 3, 8, 8, dtype=torch.float64)
    assert conv.by_fourier(x) is (n == 32)
    torch.testing.assert_close(conv(x), torch.cat([conv(row) for row in x.split(1)]))


@pytest.mark.parametrize(("device", "way"), [("cpu", True), ("meta", True), ("cuda", False)])
def test_only_where_it_was_measured(device: str, way: bool) -> None:
    x = SimpleNamespace(shape=(32, 3, 8, 8), device=torch.device(device))
    assert Conv(3, 4, 8).by_fourier(cast(Tensor, x)) is way


def test_sizes_are_found_out_without_values() -> None:
    x, weight = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(4, 3, 8, 8, device="meta")
    assert convolve(x, weight, 3).shape == (2, 4, 8, 8)
