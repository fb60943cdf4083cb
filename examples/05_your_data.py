"""Your own array and another likelihood: small colour images, 5 bits deep; about a minute.

python examples/05_your_data.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import ladder
from ladder.build import resolve

rng = np.random.default_rng(0)


def disc(size: int = 12) -> np.ndarray:
    """A coloured disc on a dark ground, `[H, W, 3]`."""
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(3, size - 3, 2), rng.uniform(2, 4)
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    image = np.where(inside[..., None], rng.integers(96, 256, 3), 24)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


with TemporaryDirectory() as folder:
    path = Path(folder) / "discs.npz"
    np.savez(
        path,
        train=np.stack([disc() for _ in range(1000)]),
        test=np.stack([disc() for _ in range(100)]),
    )
    config = resolve(
        {
            "model": {
                "system": "hierarchy",
                "shape": [3, 12, 12],
                "inference": "ladder",
                "likelihood": {"kind": "logistic_mixture", "mixtures": 5, "bits": 5},
                "layers": [
                    {"channels": 4, "resolution": 6, "width": 24, "repeat": 2},
                    {"channels": 4, "resolution": 3, "width": 24},
                    {"dim": 8, "hidden": [32]},
                ],
            },
            "data": {"name": str(path)},
            "train": {"steps": 200, "batch_size": 64, "lr": 2e-3, "grad_clip": 200.0},
        }
    )
    summary = ladder.fit(config, Path(folder) / "run")
    model = ladder.from_pretrained(Path(folder) / "run")

print(f"{summary.evaluation.bpd:.2f} bits per dimension of 5-bit colours, where noise costs 5")
x = ladder.sample(model, 4, temperature=0.8, seed=0).sample()
levels = 31 * x
on = torch.allclose(levels, levels.round(), atol=1e-3)
print(f"samples {tuple(x.shape)} lie on the 32 levels: {on}")
