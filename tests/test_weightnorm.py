"""Weight normalisation: its formula, its beginning, its masks, and the convolution itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.weightnorm import WeightNormConv2d, norms


def lively(conv: WeightNormConv2d) -> WeightNormConv2d:
    """Double precision, and norms that are not those of the directions."""
    conv = conv.double()
    with torch.no_grad():
        conv.log_norm += torch.randn_like(conv.log_norm)
    return conv


def masked(out: int = 6, channels: int = 4, kernel: int = 3) -> Tensor:
    """A mask with zeros, one row of which is nothing but zeros."""
    mask = (torch.rand(out, channels, kernel, kernel) < 0.6).float()
    mask[2] = 0.0
    return mask


def published(conv: WeightNormConv2d) -> Tensor:
    """exp(l_o) w_o / (||w_o|| + 1e-5), one output channel and one number after the other."""
    rows = []
    for o in range(conv.out_channels):
        w = conv.weight[o] if conv.mask is None else conv.weight[o] * conv.mask[o]
        length = math.sqrt(sum(value * value for value in w.flatten().tolist()))
        rows.append(math.exp(conv.log_norm[o].item()) * w / (length + 1e-5))
    return torch.stack(rows)


CASES: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"dilation": 2},
    {"groups": 2},
    {"kernel": 1, "bias": False},
    {"kernel": 5, "stride": 2, "dilation": 3, "groups": 2, "bias": False},
]


@pytest.mark.parametrize("with_mask", [False, True])
def test_the_weight_is_its_formula(with_mask: bool) -> None:
    conv = lively(WeightNormConv2d(4, 6, 3, mask=masked() if with_mask else None))
    torch.testing.assert_close(conv.effective_weight(), published(conv), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("case", CASES)
def test_it_convolves_with_that_weight(case: dict[str, Any]) -> None:
    case = {"kernel": 3, **case}
    conv = lively(WeightNormConv2d(4, 6, **case))
    stride, dilation, groups = (case.get(name, 1) for name in ("stride", "dilation", "groups"))
    padding = dilation * (case["kernel"] // 2)
    x = torch.randn(2, 4, 8, 6, dtype=torch.float64)
    expected = F.conv2d(x, published(conv), conv.bias, stride, padding, dilation, groups)
    assert expected.shape == (2, 6, 8 // stride, 6 // stride)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
    weight, bias = torch.randn_like(conv.weight), torch.randn(6, dtype=torch.float64)
    other = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(conv.convolve(x, weight, bias), other, rtol=1e-12, atol=1e-12)


def test_it_begins_as_what_torch_draws_but_for_a_hundredth() -> None:
    torch.manual_seed(5)
    conv = WeightNormConv2d(4, 6, 3)
    torch.manual_seed(5)
    plain = nn.Conv2d(4, 6, 3)
    assert torch.equal(conv.weight, plain.weight)
    assert conv.bias is not None
    assert plain.bias is not None
    assert torch.equal(conv.bias, plain.bias)
    length = plain.weight.detach().flatten(1).norm(dim=1)
    assert conv.log_norm.shape == (6, 1, 1, 1)
    torch.testing.assert_close(conv.log_norm.flatten(), (length + 0.01).log())
    # Longer by no more than the 0.01 that went into the logarithm.
    longer = (conv.effective_weight() - plain.weight).flatten(1).norm(dim=1)
    torch.testing.assert_close(longer, torch.full((6,), 0.01), rtol=2e-3, atol=0.0)


def test_what_a_mask_hides_counts_nowhere() -> None:
    mask = masked()
    conv = lively(WeightNormConv2d(4, 6, 3, mask=mask))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    before = conv(x)
    before.square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()  # of the row without any length too
    assert not conv.weight.grad[mask == 0.0].any()
    assert conv.weight.grad[mask == 1.0].all()
    assert not conv.effective_weight()[mask == 0.0].any()
    with torch.no_grad():
        conv.weight[mask == 0.0] = 1e3
    assert torch.equal(conv(x), before)


def test_a_mask_begins_by_the_norm_of_what_it_leaves() -> None:
    mask = masked()
    conv = WeightNormConv2d(4, 6, 3, mask=mask)
    length = (conv.weight * mask).flatten(1).norm(dim=1)
    torch.testing.assert_close(conv.log_norm.flatten(), (length + 0.01).log())
    assert conv.log_norm[2].item() == pytest.approx(math.log(0.01))


def test_a_mask_goes_where_the_module_goes_but_not_to_the_disk() -> None:
    plain, conv = WeightNormConv2d(4, 6, 3), WeightNormConv2d(4, 6, 3, mask=masked())
    assert list(conv.state_dict()) == list(plain.state_dict()) == ["weight", "bias", "log_norm"]
    assert [name for name, _ in conv.named_parameters()] == list(conv.state_dict())
    assert conv.double().mask is not None
    assert conv.mask is not None
    assert conv.mask.dtype == torch.float64
    assert conv.to("meta").mask.is_meta
    assert WeightNormConv2d(4, 6, 3).mask is None


def test_only_the_direction_of_w_matters() -> None:
    """Salimans & Kingma, section 2.1: the gradient of w is at right angles to w."""
    conv = lively(WeightNormConv2d(4, 6, 3))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    conv(x).square().sum().backward()
    assert conv.weight.grad is not None
    along = (conv.weight.grad * conv.weight).flatten(1).sum(dim=1).abs()
    # But for the floor under the norm, which is 1e-5 of a length of about 1.
    lengths = conv.weight.grad.flatten(1).norm(dim=1) * conv.weight.flatten(1).norm(dim=1)
    assert (along < 1e-3 * lengths).all()


def test_norms_are_of_all_that_leads_to_an_output() -> None:
    weight = torch.zeros(3, 2, 1, 2)
    weight[0, :, 0, :] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    weight[1, 1, 0, 0] = -3.0
    assert torch.equal(norms(weight), torch.tensor([5.0, 3.0, 0.0]).view(3, 1, 1, 1))
