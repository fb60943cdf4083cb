"""Train the documented two-layer model on the bundled digits and use it; about half a minute.

python examples/01_two_layers.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import ladder
from ladder.build import resolve
from ladder.data import load, take

config = resolve("mnist_2layer", ["data=digits", "train.steps=800", "train.log_every=200"])

with TemporaryDirectory() as folder:
    summary = ladder.fit(config, Path(folder) / "run")
    model = ladder.from_pretrained(Path(folder) / "run")

result = summary.evaluation
print(f"{summary.split} ELBO {result.elbo:.1f} nats, KL by layer {result.kl}")

x = take(load(config.data, config.model.shape).test, torch.arange(8), torch.device("cpu"))
latents = ladder.encode(model, x, seed=0)
for name, latent in latents.items():
    assert latent.kl is not None
    print(f"{name}: {tuple(latent.z.shape)}, {latent.kl.sum(1).mean():.2f} nats for these eight")

# Three sources of z: the posterior, the prior, or you.
everything = ladder.reconstruct(model, x, seed=0).mean
top_alone = ladder.reconstruct(model, x, top=1, seed=0).mean
mine = ladder.decode(model, {"z2": torch.zeros(1, 16)}, temperature=0.0).mean
print(f"mean absolute error, both levels: {(everything - x).abs().mean():.3f}")
print(f"mean absolute error, z2 alone:    {(top_alone - x).abs().mean():.3f}")
print(f"the digit at z2 = 0 has {int((mine > 0.5).sum())} bright pixels")

with torch.no_grad():
    bound = ladder.iw_elbo(model, x, samples=100)
print(f"log p(x) is at least {bound.mean():.1f} nats (importance-weighted, K=100)")
