"""The released BIVA code in PyTorch, trained as it trains, for `steps.py` to time beside ours.

The code itself (https://github.com/vlievin/biva-pytorch, MIT) is kept outside this repository. Its
stages are written from our plan; `booster`, which only holds what it logs, is replaced by a
dictionary, and its averaged model by the same average. In bfloat16, which it never had, autocast
is around it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from ladder.bench.case import Case, configured
from ladder.bench.trainee import Trainee
from ladder.systems.biva import Config

STAGES = {"bidirectional": "BivaStage", "ladder": "LvaeStage", "bottom_up": "VaeStage"}
SCALES = {
    "softplus_log_variance": torch.nn.Softplus,
    "log_variance": None,
    "tanh_log_variance": torch.nn.Tanh,
}


class Diagnostic(dict):  # type: ignore[type-arg]
    """What stands for `booster.Diagnostic`."""

    def to(self, *_: Any) -> Diagnostic:
        """Stay where it is."""
        return self


def load(folder: Path, part: str) -> ModuleType:
    """Import a part of its package, with a stand-in for `booster`."""
    sys.path.insert(0, str(folder))
    if "booster" not in sys.modules:
        booster, utils = ModuleType("booster"), ModuleType("booster.utils")
        booster.Diagnostic = Diagnostic  # type: ignore[attr-defined]
        utils.available_device = utils.logging_sep = str  # type: ignore[attr-defined]
        sys.modules |= {"booster": booster, "booster.utils": utils}
    return importlib.import_module(f"biva.{part}")


def stages(config: Config) -> list[list[list[int]]]:
    """Our plan in its words: filters, kernel and stride of every block, from the data up."""
    found = []
    for layer in config.stack:
        kernels = layer.kernels(config.blocks)
        strides = [1] * (config.blocks - 1) + [layer.stride]
        found.append(
            [[config.filters, k, s] for k, s in zip(kernels, strides, strict=True)],
        )
    return found


def latents(config: Config, model: ModuleType) -> list[dict[str, Any]]:
    """The latents of our plan in its words."""
    return [
        {"N": layer.size, "block": model.DenseNormal}
        if layer.dim
        else {
            "N": layer.size,
            "kernel": layer.latent_kernel or layer.kernels(config.blocks)[-1],
            "block": model.ConvNormal,
        }
        for layer in config.stack
    ]


def released(case: Case, folder: Path) -> Trainee:
    """The released model with its own step."""
    run = Run(case, folder)
    return Trainee(
        parameters=sum(p.numel() for p in run.model.parameters()),
        step=run.step,
        sample=run.sample,
        counts=lambda: {"steps": run.steps, "left_out": 0, "training_failed": False},
    )


class Run:
    """Model, averaged model, optimiser and evaluator."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, config = case, configured(case)
        plan, self.train = config.model, config.train
        model, utils = load(folder, "model"), load(folder, "utils")
        self.colour = plan.likelihood.kind == "logistic_mixture"
        likelihood = (
            utils.DiscretizedMixtureLogits(plan.likelihood.mixtures) if self.colour else Bernoulli
        )
        torch.manual_seed(self.train.seed)
        self.model: Any = model.DeepVae(
            Stage=getattr(model, STAGES[plan.inference]),
            tensor_shp=(-1, *plan.shape),
            stages=stages(plan),
            latents=latents(plan, model),
            nonlinearity="elu",
            q_dropout=plan.q_dropout,
            p_dropout=plan.p_dropout,
            features_out=10 * plan.likelihood.mixtures if self.colour else plan.shape[0],
            no_skip=not plan.skip,
            log_var_act=SCALES[plan.scale],
        ).to(case.device)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        evaluation = load(folder, "evaluation")
        self.evaluator = evaluation.VariationalInference(likelihood, iw_samples=1)
        self.likelihood, self.training_step = likelihood, utils.training_step
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=self.train.lr)
        self.scheduler = utils.LowerBoundedExponentialLR(self.optimizer, 0.999999, 0.0001)
        self.free_bits = [2.0] * (
            2 * len(plan.stack) - 1 if plan.inference == "bidirectional" else len(plan.stack)
        )
        self.steps = 0

    def step(self, x: Tensor) -> None:
        """Its own training step, then the average of the parameters one by one."""
        x = 2 * x - 1 if self.colour else (x > 0.5).float()
        low = self.case.precision == "bfloat16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            self.training_step(
                *(x, self.model, self.evaluator, self.optimizer, self.scheduler),
                beta=1.0,
                freebits=self.free_bits,
            )
        self.steps += 1
        decay = self.train.ema or 0.9995
        for mean, weight in zip(self.average, self.model.parameters(), strict=True):
            mean.mul_(decay).add_(weight.data, alpha=1 - decay)

    @torch.no_grad()
    def sample(self, n: int) -> Any:
        """So many images, as uint8 on the host."""
        self.model.eval()
        x = self.likelihood(logits=self.model.sample_from_prior(n)["x_"]).sample()
        return ((x + 1) / 2 if self.colour else x).mul(255).byte().cpu()
