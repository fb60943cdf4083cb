"""The documented two-layer model trained the documented way, to be measured beside ours."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Documented(nn.Module):
    """q(z1|x) q(z2|z1,h1), p(z2) p(z1|z2) p(x|z1), with the documented widths."""

    def __init__(self) -> None:
        super().__init__()
        self.up1 = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.mean1, self.logvar1 = nn.Linear(256, 32), nn.Linear(256, 32)
        self.up2 = nn.Sequential(nn.Linear(32 + 256, 128), nn.ReLU())
        self.mean2, self.logvar2 = nn.Linear(128, 16), nn.Linear(128, 16)
        self.down2 = nn.Sequential(nn.Linear(16, 128), nn.ReLU())
        self.prior_mean1, self.prior_logvar1 = nn.Linear(128, 32), nn.Linear(128, 32)
        self.down1 = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.pixels = nn.Linear(256, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h1 = self.up1(x)
        m1, v1 = self.mean1(h1), self.logvar1(h1)
        z1 = m1 + torch.exp(0.5 * v1) * torch.randn_like(m1)
        h2 = self.up2(torch.cat([z1, h1], dim=1))
        m2, v2 = self.mean2(h2), self.logvar2(h2)
        z2 = m2 + torch.exp(0.5 * v2) * torch.randn_like(m2)
        g = self.down2(z2)
        image = torch.sigmoid(self.pixels(self.down1(z1)))
        return image, m1, v1, self.prior_mean1(g), self.prior_logvar1(g), m2, v2


def loss_function(x: Tensor, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Total, cross-entropy, KL(z1), KL(z2), each summed over the batch."""
    image, m1, v1, pm1, pv1, m2, v2 = out
    bce = F.binary_cross_entropy(image, x, reduction="sum")
    kl2 = -0.5 * torch.sum(1 + v2 - m2.pow(2) - v2.exp())
    kl1 = -0.5 * torch.sum(1 + v1 - pv1 - ((m1 - pm1).pow(2) + v1.exp()) / pv1.exp())
    return bce + kl1 + kl2, bce, kl1, kl2


def images(root: Path, folder: Path) -> Dataset:
    """MNIST through ToTensor, image by image; unpacked into `folder` where it is packed."""
    from torchvision import datasets, transforms

    raw = root / "MNIST" / "raw"
    if not (raw / "train-images-idx3-ubyte").is_file():
        target = folder / "MNIST" / "raw"
        target.mkdir(parents=True, exist_ok=True)
        for path in raw.glob("*.gz"):
            (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        root = folder
    return datasets.MNIST(str(root), train=True, transform=transforms.ToTensor())


def train_epoch(
    model: Documented,
    data: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str = "cpu",
) -> list[float]:
    """One epoch; every term is read back at every step."""
    totals = [0.0] * 4
    for images, _ in data:
        x = images.view(images.size(0), -1).to(device)
        optimizer.zero_grad()
        terms = loss_function(x, model(x))
        terms[0].backward()
        optimizer.step()
        for i, term in enumerate(terms):
            totals[i] += term.item()
    return [t / len(data.dataset) for t in totals]  # type: ignore[arg-type]
