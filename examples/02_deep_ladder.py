"""Declare a deep convolutional ladder with a dense top, and train it; about a minute.

python examples/02_deep_ladder.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import ladder
from ladder.build import resolve
from ladder.parse import read_yaml

CONFIG = """
model:
  system: hierarchy
  shape: [1, 16, 16]
  inference: ladder        # or bottom_up, or bidirectional
  merge: residual_normal   # or direct, precision_weighted, concat; a layer may say its own
  top: learned             # p(z_L): standard, learned, or from a learned constant
  layers:                  # from the data up
    - {channels: 2, resolution: 8, width: 16, blocks: 1, repeat: 4}
    - {channels: 2, resolution: 4, width: 24, blocks: 1, repeat: 4}
    - {dim: 8, hidden: [64], repeat: 2}
objective:
  kl_annealing: {kind: linear, steps: 100}
data: {name: digits}
train: {steps: 150, batch_size: 64, lr: 2e-3, grad_clip: 100.0, log_every: 50}
"""

config = resolve(read_yaml(CONFIG, "CONFIG"))

with TemporaryDirectory() as folder:
    summary = ladder.fit(config, Path(folder) / "run")
    model = ladder.from_pretrained(Path(folder) / "run")

parameters = sum(p.numel() for p in model.parameters())
print(f"{len(model.top_down.layers)} stochastic layers, {parameters:,} parameters")
for name, bits in ladder.bits_per_layer(summary.evaluation.kl, dims=16 * 16).items():
    print(f"{name:>4}: {bits.bits:6.2f} bits, {bits.share:4.0%} of the code")
print(f"{summary.split} ELBO {summary.evaluation.elbo:.1f} nats")
