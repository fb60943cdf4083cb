"""Flows: autoregressive by their Jacobian, and log-determinants against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from ladder.distributions import Drawn, Flowed, Normal
from ladder.flows import FlowMerge, Shift, ShiftFlow, masked

C, H, W = 3, 4, 5
D = C * H * W


def reading_order(values: Tensor, mirror: bool = False) -> Tensor:
    """Elements `[C, H, W]` row by row, position by position, channel by channel."""
    return rearrange(values.flip(1, 2) if mirror else values, "c h w -> (h w c)")


def jacobian(f: Callable[[Tensor], Tensor], z: Tensor, mirror: bool = False) -> Tensor:
    """d f / d z, `[D, D]`, rows and columns in the order of reading."""
    full = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], z)
    rows = torch.stack([reading_order(c, mirror) for c in full.reshape(-1, *z.shape)])
    columns = rearrange(rows, "(c h w) d -> d c h w", c=full.shape[0], h=H)
    return torch.stack([reading_order(c, mirror) for c in columns], dim=1)


def lively(module: nn.Module) -> Any:
    """Double precision, and weights that are not small."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return module


def noise() -> Tensor:
    return torch.randn(C, H, W, dtype=torch.float64)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_strict_convolution_sees_only_what_comes_before(mirror: bool) -> None:
    conv = lively(masked(C, C, 3, strict=True, mirror=mirror))
    found = jacobian(conv, noise(), mirror)
    assert not found.triu().any()
    # Everything that a 3x3 window lets it see before itself, it does see.
    middle = (H // 2 * W + W // 2) * C
    assert found[middle + 1, middle] != 0.0
    assert found[middle, middle - 1] != 0.0
    assert found[middle, middle - W * C] != 0.0


@pytest.mark.parametrize("mirror", [False, True])
def test_other_convolutions_see_themselves_too(mirror: bool) -> None:
    conv = lively(masked(C, C, 5, strict=False, mirror=mirror, depthwise=True))
    found = jacobian(conv, noise(), mirror)
    assert not found.triu(1).any()
    assert (found.diagonal() != 0.0).all()
    same = torch.arange(D) % C
    assert not found[same[:, None] != same].any()  # channels apart
    conv = lively(masked(C, C, 1, strict=False, mirror=mirror))
    found = jacobian(conv, noise(), mirror)
    assert not found.triu(1).any()
    assert (found.diagonal() != 0.0).all()


@pytest.mark.parametrize("strict", [False, True])
def test_wider_convolutions_count_blocks_of_channels(strict: bool) -> None:
    """C to 6C and 6C to C: block b of six channels may see channel b, or only those before."""
    wide = lively(masked(C, 6 * C, 1, strict=strict, mirror=False)).effective_weight()[:, :, 0, 0]
    narrow = lively(masked(6 * C, C, 1, strict=strict, mirror=False))
    sees = torch.ones(C, C).tril(-1 if strict else 0).bool()
    assert torch.equal(wide != 0.0, sees.repeat_interleave(6, dim=0))
    assert torch.equal(
        narrow.effective_weight()[:, :, 0, 0] != 0.0, sees.repeat_interleave(6, dim=1)
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_a_shift_is_autoregressive(mirror: bool) -> None:
    found = jacobian(lively(Shift(C, mirror)), noise(), mirror)
    assert torch.equal(found.diagonal(), torch.ones(D, dtype=torch.float64))
    assert not found.triu(1).any()
    # z of the first element reaches the last one through one cell of wide windows.
    assert (found.tril(-1) != 0.0).any(dim=0)[: D - C * W].all()


@pytest.mark.parametrize("pairs", [1, 2])
def test_log_determinants_are_zero(pairs: int) -> None:
    flow, z = lively(ShiftFlow(C, pairs)), noise()
    matrix = jacobian(flow, z)
    sign, log_det = torch.linalg.slogdet(matrix)
    assert sign.item() == 1.0
    assert log_det.item() == pytest.approx(0.0, abs=1e-9)
    assert matrix.triu(1).any()  # mirrored cells bring what comes later
    assert matrix.tril(-1).any()


def test_new_flows_move_little() -> None:
    z = torch.randn(8, C, H, W)
    moved = ShiftFlow(C, 1)(z)
    assert not torch.equal(moved, z)
    assert (moved - z).std() < 0.2 * z.std()


class Given(nn.Module):
    """A merge that returns the evidence."""

    def forward(self, h: Any, evidence: Normal, p: Normal) -> Normal:
        return evidence


def test_the_density_of_a_moved_draw_is_that_of_a_change_of_variables() -> None:
    flow = lively(ShiftFlow(C, 2))
    q0 = Normal(noise()[None], 0.3 * noise()[None])
    p = Normal(noise()[None], 0.3 * noise()[None])
    torch.manual_seed(1)
    q = FlowMerge(Given(), flow)(None, q0, p)
    torch.manual_seed(1)
    z0 = q0.rsample()
    z = flow(z0)
    assert isinstance(q, Flowed)
    assert isinstance(q, Drawn)
    assert torch.equal(q.rsample(), z)
    log_det = torch.linalg.slogdet(jacobian(flow, z0[0])).logabsdet
    torch.testing.assert_close(q.log_prob(z).sum(), q0.log_prob(z0).sum() - log_det)
    torch.testing.assert_close(q.kl(p, z), q.log_prob(z) - p.log_prob(z))


def test_the_mean_of_a_moved_posterior_is_estimated_without_bias() -> None:
    torch.manual_seed(3)
    flow = lively(ShiftFlow(C, 1))
    q0 = Normal(*(0.5 * noise()[None].expand(20_000, C, H, W) for _ in range(2)))
    with torch.no_grad():
        q = FlowMerge(Given(), flow)(None, q0, q0)
    error = (q.mean - q.z).mean(dim=0)
    spread = (q.z - q.mean).std(dim=0) / 20_000**0.5
    assert (error.abs() < 5.0 * spread).all()


def test_gradients_of_a_moved_posterior_reach_flow_and_parameters() -> None:
    flow = lively(ShiftFlow(C, 1))
    parameters = [v.requires_grad_() for v in (noise()[None], 0.3 * noise()[None])]
    p = Normal(torch.zeros(1, C, H, W), torch.zeros(1, C, H, W))
    q = FlowMerge(Given(), flow)(None, Normal(*parameters), p)
    q.kl(p, q.z).sum().backward()
    assert all(v.grad is not None and v.grad.any() for v in [*flow.parameters(), *parameters])
