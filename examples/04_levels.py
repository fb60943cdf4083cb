"""What each level of a trained hierarchy holds: encode, cool, cut, walk and swap; half a minute.

python examples/04_levels.py [FOLDER]     # writes levels.png there, or here
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import ladder
from ladder.build import resolve
from ladder.data import load, take
from ladder.report.sheet import Row, Sheet, sheet_png

WORDS = ["data=digits", "model.kl=sampled", "model.state=skip", "train.steps=1000"]
config = resolve("mnist_2layer", [*WORDS, "train.log_every=200"])

with TemporaryDirectory() as folder:
    ladder.fit(config, Path(folder) / "run")
    model = ladder.from_pretrained(Path(folder) / "run")

x = take(load(config.data, config.model.shape).test, torch.arange(16), torch.device("cpu"))
a, b = x[:8], x[8:]
latents = ladder.encode(model, a, seed=0)
top = ladder.top_latents(latents, 1)  # {"z2": ...}

rows = [
    Row("A", a),
    Row("all of A's levels", ladder.decode(model, latents).mean),
    Row("A's z2, z1 at its mean", ladder.decode(model, top, rest="mean").mean),
    Row("A's z2, z1 drawn", ladder.decode(model, top, rest="prior", seed=1).mean),
    Row("B", b),
    Row("z2 of A, z1 of B", ladder.swap(model, a, b, levels=1, seed=0).mean),
    Row("A[0] to B[0] in z2", ladder.interpolate(model, a[0], b[0], ["z2"], 8, seed=0).mean),
    Row("prior", ladder.sample(model, 8, seed=2).mean),
    Row("prior, z1 cooled", ladder.sample(model, 8, {"z1": 0.3}, seed=2).mean),
]
path = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "levels.png"
path.write_bytes(sheet_png(Sheet("What each level holds", rows)))
print(path)

scores = ladder.level_scores(model, a, seed=0)
noise = ladder.level_scores(model, torch.rand_like(a), seed=0)
print("ELBO of digits:", scores.bound[0].mean().item(), "noise:", noise.bound[0].mean().item())
print("LLR>1 of digits:", scores.ratio[1].mean().item(), "noise:", noise.ratio[1].mean().item())
print("AUROC by the ELBO:", ladder.auroc(-scores.bound[0], -noise.bound[0]))
