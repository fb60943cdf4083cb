"""Every kind of inference against the exact evidence of linear-Gaussian hierarchies.

Without hidden layers and blocks, and with scales that depend on nothing, z and x are affine in
the noise, whatever the inference, the merge and the state. So p(z, x) and q(z | x) are read off
the model itself: its outputs at zero noise and at unit noises. Log-ratios are quadratic in the
noise, whose expectation is the mean over all signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from ladder.build import build_model
from ladder.model import HierarchicalVAE
from ladder.objectives import elbo, iw_elbo

Noise = Callable[[Tensor], None]
DENSE: dict[str, Any] = {"shape": [4], "layers": [{"dim": 1, "repeat": 3}]}
DENSE_PAIR: dict[str, Any] = {"shape": [4], "layers": [{"dim": 2, "repeat": 2}]}
CONV: dict[str, Any] = {
    "shape": [2, 4],
    "layers": [{"channels": 1, "resolution": 2, "width": 4, "blocks": 0, "repeat": 2}],
    "state": "markov",
}
CONV_PAIR = {**CONV, "layers": [{**CONV["layers"][0], "channels": 2}]}
SMALL_PAIR = {
    **CONV,
    "shape": [2, 2],
    "layers": [{**CONV["layers"][0], "channels": 2, "resolution": 1}],
}
PADDED: dict[str, Any] = {**CONV, "shape": [2, 3]}
MIXED = {**PADDED, "layers": [{**CONV["layers"][0], "repeat": 1}, {"dim": 2}]}
KINDS: dict[str, dict[str, Any]] = {
    "bottom_up": {**DENSE, "inference": "bottom_up"},
    "ladder": {**DENSE, "inference": "ladder"},
    "ladder concat": {**DENSE, "inference": "ladder", "merge": "concat"},
    "ladder residual": {**DENSE, "inference": "ladder", "merge": "residual_normal"},
    "bidirectional": {**DENSE_PAIR, "inference": "bidirectional", "merge": "concat"},
    "conv bottom_up": {**CONV, "inference": "bottom_up"},
    "conv ladder": {**CONV, "inference": "ladder", "merge": "precision_weighted"},
    "conv ladder concat": {**CONV, "inference": "ladder"},
    "conv ladder residual": {**CONV, "inference": "ladder", "merge": "residual_normal"},
    "conv bidirectional": {**SMALL_PAIR, "inference": "bidirectional"},
}
# What can only come near the true posterior, but whose bound is one all the same.
COARSE: dict[str, dict[str, Any]] = {
    "ladder direct": {**DENSE, "inference": "ladder", "merge": "direct"},
    "bidirectional weighted": {**DENSE_PAIR, "inference": "bidirectional"},
    "ladder skip": {**DENSE, "inference": "ladder", "state": "skip", "merge": "concat"},
    "bidirectional residual": {**DENSE_PAIR, "inference": "bidirectional", "state": "residual"},
    "conv ladder residual state": {**PADDED, "inference": "ladder", "state": "residual"},
    "conv bottom_up skip": {**PADDED, "inference": "bottom_up", "state": "skip"},
    "conv and dense": {**MIXED, "inference": "ladder"},
    "conv and dense bottom_up": {**MIXED, "inference": "bottom_up"},
    "conv bidirectional padded": {**CONV_PAIR, "shape": [2, 3], "inference": "bidirectional"},
    "learned top": {**DENSE, "inference": "ladder", "top": "learned"},
    "constant top": {**DENSE_PAIR, "inference": "bidirectional", "top": "constant"},
}
every_kind = pytest.mark.parametrize("kind", [*KINDS, *COARSE])


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> Noise:
    """Let the draws take the columns of `[rows, n]`, in the order in which they are drawn."""

    def start(columns: Tensor) -> None:
        at = 0

        def randn_like(like: Tensor, **_: Any) -> Tensor:
            nonlocal at
            size = like[0].numel()
            values = columns[:, at : at + size].reshape(like.shape)
            at += size
            return values.to(like)

        monkeypatch.setattr(torch, "randn_like", randn_like)

    return start


def linear(kind: str) -> HierarchicalVAE:
    """Random weights, and scales that do not depend on the input."""
    config = {"system": "hierarchy", "likelihood": "gaussian", **{**KINDS, **COARSE}[kind]}
    model = build_model(config=config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * values)
        for net in gaussian_nets(model):
            net.weight[net.weight.shape[0] // 2 :] = 0.0
        model.units = flat(model.decode(1)[1]).shape[1]
    return model


def gaussian_nets(part: nn.Module) -> list[Any]:
    """Every affine map that emits means, then raw scales."""
    return [m.net for m in part.modules() if type(m).__name__ == "ConditionalNormal"]


def flat(latents: Any) -> Tensor:
    return torch.cat([latent.z.flatten(1) for latent in latents.values()], dim=1)


def size(model: HierarchicalVAE) -> int:
    """Number of latent units."""
    return int(model.units)


def affine(values: Tensor) -> tuple[Tensor, Tensor]:
    """Offset and matrix of a map from its values at zero and at the unit vectors."""
    return values[0], (values[1:] - values[0]).T


def probes(n: int) -> Tensor:
    return torch.cat([torch.zeros(1, n), torch.eye(n)]).double()


def joint(model: HierarchicalVAE, noise: Noise) -> MultivariateNormal:
    """p(z, x), differentiable in the model's weights."""
    n = size(model)
    noise(probes(n))
    px, latents = model.decode(n + 1)
    mean, root = affine(torch.cat([flat(latents), px.mean.flatten(1)], dim=1))
    own = px.normal.log_scale[0].flatten().exp().square()
    variances = torch.cat([torch.full((n,), 1e-12).double(), own])
    return MultivariateNormal(mean, root @ root.T + variances.diag())


def truth(model: HierarchicalVAE, x: Tensor, noise: Noise) -> tuple[Tensor, MultivariateNormal]:
    """log p(x) and p(z | x) of one datum."""
    p, n = joint(model, noise), size(model)
    mean, s, observed = p.mean, p.covariance_matrix, x.flatten()
    evidence = MultivariateNormal(mean[n:], s[n:, n:]).log_prob(observed)
    gain = torch.linalg.solve(s[n:, n:], s[n:, :n]).T
    covariance = s[:n, :n] - gain @ s[n:, :n]
    covariance = (covariance + covariance.T) / 2
    return evidence, MultivariateNormal(mean[:n] + gain @ (observed - mean[n:]), covariance)


def posterior(model: HierarchicalVAE, x: Tensor, noise: Noise) -> MultivariateNormal:
    """q(z | x) of one datum."""
    n = size(model)
    noise(probes(n))
    mean, root = affine(flat(model(x.expand(n + 1, *x.shape))[1]))
    return MultivariateNormal(mean, root @ root.T)


def expected(model: HierarchicalVAE, x: Tensor, noise: Noise) -> Tensor:
    """Exact expectation of the reported ELBO of each datum, `[B]`."""
    n = size(model)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * n)
    noise(signs.repeat(len(x), 1))
    many = x.repeat_interleave(len(signs), dim=0)
    return elbo(*model(many), many).elbo.view(len(x), -1).mean(dim=1)


def data(model: HierarchicalVAE, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, *model.config.shape, generator=generator, dtype=torch.float64)


@every_kind
@torch.no_grad()
def test_the_gap_to_the_evidence_is_the_kl_to_the_true_posterior(kind: str, noise: Noise) -> None:
    model = linear(kind)
    x = data(model, 2)
    bounds = expected(model, x, noise)
    for datum, bound in zip(x, bounds, strict=True):
        evidence, true = truth(model, datum, noise)
        gap = kl_divergence(posterior(model, datum, noise), true)
        assert gap > 0.1
        torch.testing.assert_close(bound, evidence - gap, rtol=1e-7, atol=1e-7)


@torch.no_grad()
def separate(model: HierarchicalVAE) -> None:
    """Let positions of a convolutional hierarchy be independent given what is above them."""
    for part in [model.top_down, model.likelihood]:
        for module in part.modules():
            if isinstance(module, nn.Conv1d) and module.kernel_size == (3,):
                module.weight[..., [0, 2]] = 0.0


def fitted(model: HierarchicalVAE, x: Tensor, noise: Noise) -> None:
    """Maximise the exact ELBO over the inference alone."""
    merges = [p for name, p in model.top_down.named_parameters() if ".merge." in name]
    own = [*model.bottom_up.parameters(), *merges]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in own:
        p.requires_grad_(True)
    scales = {id(net.weight) for net in gaussian_nets(model)}
    optimizer = torch.optim.LBFGS(
        own, max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-14, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -expected(model, x, noise).mean()
        loss.backward()
        for p in own:
            if id(p) in scales and p.grad is not None:
                p.grad[p.shape[0] // 2 :] = 0.0
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_inference_reaches_the_evidence(kind: str, noise: Noise) -> None:
    model = linear(kind)
    separate(model)
    x = data(model, 12)  # enough to tell all affine maps of x apart
    fitted(model, x, noise)
    with torch.no_grad():
        bounds = expected(model, x, noise)
        evidence = torch.stack([truth(model, datum, noise)[0] for datum in x])
        assert (bounds < evidence + 1e-9).all()
        torch.testing.assert_close(bounds, evidence, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_iw_elbo_rises_to_the_evidence(
    kind: str, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = linear(kind)
    datum = 0.3 * data(model, 1)[0]
    evidence = truth(model, datum, noise)[0]
    monkeypatch.undo()  # real noise from here on
    many = datum.expand(200, *datum.shape)
    bounds = [iw_elbo(model, many, k, rows=40_000) for k in (1, 8, 100)]
    means = [b.mean() for b in bounds]
    errors = [b.std() / 200**0.5 for b in bounds]
    assert means[0] + 2 * (errors[0] + errors[1]) < means[1]
    assert means[1] + 2 * (errors[1] + errors[2]) < means[2] < evidence + 5 * errors[2]
