"""One generative model, three kinds of inference: which uses its layers? About a minute.

python examples/03_ablate_inference.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ladder.ablate import ablate

BASE = {
    "preset": "mnist_2layer",
    "model": {
        "kl": "sampled",
        "layers": [
            {"dim": 16, "hidden": [64]},
            {"dim": 8, "hidden": [32]},
            {"dim": 4, "hidden": [16]},
        ],
    },
    "objective": {"kl_annealing": {"kind": "linear", "steps": 150}},
    "data": {"name": "digits", "binarize": "dynamic"},
    "train": {"steps": 300},
}

with TemporaryDirectory() as folder:
    table = ablate(
        BASE,
        Path(folder) / "inference",
        vary={"model.inference": ["bottom_up", "ladder", "bidirectional"]},
        samples=20,
        n=100,
    )
    print((table.out / "table.md").read_text(encoding="utf-8"))

for row in table.rows:
    kl = "  ".join(f"z{i} {row.numbers[f'kl_z{i}'].mean:5.2f}" for i in (3, 2, 1))
    bound = row.numbers["iw20"].mean
    print(f"{row.values['model.inference']:>13}: log p(x) >= {bound:.1f} nats; KL {kl}")
