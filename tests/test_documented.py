"""The preset `mnist_2layer` is the documented two-layer model, number for number.

The class and the loss below are written from the documented model's formulas.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.build import build_model
from ladder.model import HierarchicalVAE
from ladder.objectives import Terms, elbo

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


class Documented(nn.Module):
    def __init__(self, x_dim: int = 784, z1: int = 32, z2: int = 16, hidden: int = 256) -> None:
        super().__init__()
        half = hidden // 2
        self.enc_z1 = nn.Sequential(
            nn.Linear(x_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.enc_z1_mu, self.enc_z1_logvar = nn.Linear(hidden, z1), nn.Linear(hidden, z1)
        self.enc_z2 = nn.Sequential(nn.Linear(z1 + hidden, half), nn.ReLU())
        self.enc_z2_mu, self.enc_z2_logvar = nn.Linear(half, z2), nn.Linear(half, z2)
        self.prior_z1 = nn.Sequential(nn.Linear(z2, half), nn.ReLU())
        self.prior_z1_mu, self.prior_z1_logvar = nn.Linear(half, z1), nn.Linear(half, z1)
        self.decoder = nn.Sequential(
            nn.Linear(z1, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, x_dim),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h1 = self.enc_z1(x)
        mu1, logvar1 = self.enc_z1_mu(h1), self.enc_z1_logvar(h1)
        z1 = reparameterize(mu1, logvar1)
        h2 = self.enc_z2(torch.cat([z1, h1], dim=1))
        mu2, logvar2 = self.enc_z2_mu(h2), self.enc_z2_logvar(h2)
        z2 = reparameterize(mu2, logvar2)
        return self.decoder(z1), mu1, logvar1, *self.prior(z2), mu2, logvar2

    def prior(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        h = self.prior_z1(z2)
        return self.prior_z1_mu(h), self.prior_z1_logvar(h)


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + torch.randn_like(std) * std


def loss_function(x: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    recon, mu1, logvar1, mu1_p, logvar1_p, mu2, logvar2 = values
    bce = F.binary_cross_entropy(recon, x, reduction="sum")
    kl2 = -0.5 * torch.sum(1 + logvar2 - mu2.pow(2) - logvar2.exp())
    ratio = ((mu1 - mu1_p).pow(2) + logvar1.exp()) / logvar1_p.exp()
    kl1 = -0.5 * torch.sum(1 + logvar1 - logvar1_p - ratio)
    return bce + kl1 + kl2, bce, kl1, kl2


def mapped(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or gradients, of the documented model under our names."""
    whole = {
        "bottom_up.rungs.z1.net.0": "enc_z1.0",
        "bottom_up.rungs.z1.net.2": "enc_z1.2",
        "bottom_up.rungs.z2.net.0": "enc_z2.0",
        "top_down.layers.z1.transition.0": "prior_z1.0",
        "top_down.finish.0": "decoder.0",
        "top_down.finish.2": "decoder.2",
        "likelihood.0": "decoder.4",
    }
    heads = {
        "bottom_up.rungs.z1.posterior.net": "enc_z1",
        "bottom_up.rungs.z2.posterior.net": "enc_z2",
        "top_down.layers.z1.prior.net": "prior_z1",
    }
    ours: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        for name, other in whole.items():
            ours[f"{name}.{kind}"] = theirs[f"{other}.{kind}"]
        for name, other in heads.items():
            halves = [theirs[f"{other}_mu.{kind}"], theirs[f"{other}_logvar.{kind}"]]
            ours[f"{name}.{kind}"] = torch.cat(halves)
    return ours


def both(dtype: torch.dtype = torch.float32) -> tuple[Documented, HierarchicalVAE]:
    theirs, ours = Documented(), build_model("mnist_2layer")
    ours.load_state_dict(mapped(theirs.state_dict()))
    return theirs.to(dtype), ours.to(dtype)


def run_both(
    theirs: Documented, ours: HierarchicalVAE, x: Tensor
) -> tuple[tuple[Tensor, ...], Terms]:
    torch.manual_seed(1)
    documented = loss_function(x.flatten(1), theirs(x.flatten(1)))
    torch.manual_seed(1)
    return documented, elbo(*ours(x), x)


def test_number_of_parameters() -> None:
    counts = [sum(p.numel() for p in model.parameters()) for model in both()]
    assert counts == [610_480, 610_480]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_its_parts_are_the_documented_ones(dtype: torch.dtype) -> None:
    x = torch.rand(16, 1, 28, 28, dtype=dtype)
    documented, terms = run_both(*both(dtype), x)
    ours = [terms.loss, -terms.log_px.mean(), terms.kl["z1"].mean(), terms.kl["z2"].mean()]
    for found, right in zip(ours, documented, strict=True):
        torch.testing.assert_close(found, right / 16, rtol=TOLERANCE[dtype], atol=0.0)


def test_gradients_are_the_documented_ones() -> None:
    theirs, ours = both(torch.float64)
    documented, terms = run_both(theirs, ours, torch.rand(8, 1, 28, 28, dtype=torch.float64))
    (documented[0] / 8).backward()
    terms.loss.backward()
    right = mapped({name: p.grad for name, p in theirs.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == right.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-8, atol=1e-12)


def test_a_few_steps_of_adam_end_at_the_documented_weights() -> None:
    theirs, ours = both(torch.float64)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (theirs, ours)]
    x = torch.rand(8, 1, 28, 28, dtype=torch.float64)
    for _ in range(3):
        documented, terms = run_both(theirs, ours, x)
        losses = (documented[0] / 8, terms.loss)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    right = mapped(theirs.state_dict())
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, right[name], rtol=0.0, atol=1e-9)


def test_initial_weights_have_the_documented_distribution() -> None:
    # torch's default: uniform in +-1/sqrt(fan in), for weights and biases.
    theirs = mapped(Documented().state_dict())
    ours = build_model("mnist_2layer").state_dict()
    for name, weight in ours.items():
        assert weight.shape == theirs[name].shape
        if weight.ndim == 2:
            bound = weight.shape[1] ** -0.5
            assert weight.abs().max() <= bound
            assert weight.std() / theirs[name].std() == pytest.approx(1.0, abs=0.1)


def test_decoding_every_latent_is_the_reconstruction() -> None:
    _, ours = both()
    x = torch.rand(5, 1, 28, 28)
    px, latents = ours(x)
    again, _ = ours.decode(5, {name: latent.z for name, latent in latents.items()})
    assert torch.equal(px.logits, again.logits)


@torch.no_grad()
def test_sampling_goes_from_z2_to_z1_to_x() -> None:
    theirs, ours = both()
    torch.manual_seed(2)
    z2 = torch.randn(10, 16)
    z1 = reparameterize(*theirs.prior(z2))
    images = theirs.decoder(z1).view(10, 1, 28, 28)
    torch.manual_seed(2)
    px, latents = ours.decode(10)
    torch.testing.assert_close(latents["z2"].z, z2, rtol=0.0, atol=0.0)
    torch.testing.assert_close(latents["z1"].z, z1)
    torch.testing.assert_close(px.mean, images)
