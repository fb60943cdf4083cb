"""The released VD-VAE code, trained as it trains, for `steps.py` to time beside ours.

The code itself (https://github.com/openai/vdvae, MIT) is kept outside this repository. Its plan is
written from ours. In place of apex's fused AdamW stands torch's fused one; MPI and DDP, which do
nothing for one process, are left out. In bfloat16, which it never had, autocast is around it.
"""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ladder.bench.case import Case, configured
from ladder.bench.trainee import Trainee
from ladder.systems.vdvae import Config

STAND_INS = ("mpi4py", "apex")


def load(folder: Path) -> ModuleType:
    """Import its `vae.py`, with empty modules for what only its training script needs."""
    sys.path.insert(0, str(folder))
    for _ in STAND_INS:
        try:
            return importlib.import_module("vae")
        except ModuleNotFoundError as error:
            if error.name not in STAND_INS:
                raise
            sys.modules[error.name] = ModuleType(error.name)
    return importlib.import_module("vae")


def strings(config: Config) -> dict[str, str]:
    """Our plan in its three languages: blocks up, blocks down, widths."""
    up, down = [], []
    for i, scale in enumerate(config.scales):
        r, top = scale.resolution, i == len(config.scales) - 1
        pools = [] if top else [f"{r}d{r // config.scales[i + 1].resolution}"]
        kept = scale.encoder_blocks - len(pools)
        up += [*([f"{r}x{kept}"] if kept else []), *pools]
        mixed = config.mixed(i) if scale.layers else None
        first = [f"{r}m{mixed}"] if mixed else []
        rest = scale.layers - len(first)
        down.append([*first, *([f"{r}x{rest}"] if rest else [])])
    widths = [f"{s.resolution}:{s.width}" for s in config.scales if s.width]
    return {
        "enc_blocks": ",".join(up),
        "dec_blocks": ",".join(word for words in reversed(down) for word in words),
        "custom_width_str": ",".join(widths),
    }


def hyperparameters(config: Config) -> SimpleNamespace:
    """What its constructor asks for."""
    head = config.likelihood
    if head.kind != "logistic_mixture" or config.shape[0] != 3:
        raise SystemExit("the released code knows colour images and logistic mixtures only")
    return SimpleNamespace(
        **strings(config),
        image_channels=3,
        image_size=config.shape[1],
        width=config.width,
        zdim=config.zdim,
        bottleneck_multiple=config.bottleneck,
        no_bias_above=config.no_bias_above,
        num_mixtures=head.mixtures,
        dataset="ffhq_256" if head.bits == 5 else "",  # its only way to say 5 bits
    )


def released(case: Case, folder: Path) -> Trainee:
    """The released model with its own step."""
    run = Run(case, folder)
    return Trainee(
        parameters=sum(p.numel() for p in run.model.parameters()),
        step=run.step,
        sample=run.sample,
        counts=lambda: {"steps": run.steps, "left_out": run.skipped, "training_failed": False},
    )


class Run:
    """Model, averaged model and optimiser."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, config = case, configured(case)
        self.train, self.pixels = config.train, config.model.normalize
        torch.manual_seed(self.train.seed)
        self.model: Any = load(folder).VAE(hyperparameters(config.model)).to(case.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.train.lr,
            betas=(0.9, 0.9),
            weight_decay=self.train.weight_decay,
            fused=True,
        )
        self.steps = self.skipped = 0

    def step(self, x: Tensor) -> None:
        """Forward, backward, clip, read everything back, and only then decide to update."""
        grey = x.permute(0, 2, 3, 1) * 255
        self.model.zero_grad()
        low = self.case.precision == "bfloat16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            terms = self.model((grey - self.pixels.mean) / self.pixels.std, grey / 127.5 - 1)
        terms["elbo"].backward()
        clip = self.train.grad_clip or 200.0
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        values = [terms[name].item() for name in ("elbo", "distortion", "rate")]
        finite = all(value == value for value in values)
        self.steps += 1
        if not finite or norm >= (self.train.skip_norm or float("inf")):
            self.skipped += 1
            return
        self.optimizer.param_groups[0]["lr"] = self.train.lr * min(1.0, self.steps / 100)
        self.optimizer.step()
        decay = self.train.ema or 0.9999
        for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.data.mul_(decay)
            mean.data.add_(weight.data * (1 - decay))

    @torch.no_grad()
    def sample(self, n: int) -> Any:
        """So many images, as uint8 on the host."""
        return self.model.forward_uncond_samples(n)
