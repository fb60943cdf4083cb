"""The training loop as it is written first: eager, float32, tensor by tensor, asking every step.

The model's layers are torch's own, the optimiser, the clipping and the average walk over the
parameters in Python, and the host reads the loss, log p(x|z) and every layer's KL at each step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.build import build_model
from ladder.config import Config, ModelConfig, TrainConfig
from ladder.convolutions import Conv2d
from ladder.noise import seeded
from ladder.objectives import elbo
from ladder.sampling import layer_names
from ladder.systems.biva import normed
from ladder.train.multipliers import Multipliers
from ladder.train.penalising import Penalising
from ladder.train.schemes import layer_schemes, new_multipliers, weights_at
from ladder.train.step import lr_at, prepare
from ladder.weightnorm import WeightNormConv2d


class DirectConv(normed.Conv):
    """BIVA's convolution by torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.around), self.weight(), self.bias, self.stride)


class DirectWeightNorm(WeightNormConv2d):
    """NVAE's convolution by torch's own."""

    _conv_forward = nn.Conv2d._conv_forward


# Layers that the library computes in a way of its own, and what stands for them here.
ORDINARY: dict[type[nn.Module], type[nn.Module]] = {
    Conv2d: nn.Conv2d,
    WeightNormConv2d: DirectWeightNorm,
    normed.Conv: DirectConv,
}


def ordinary(model: nn.Module) -> None:
    """Make every layer compute as its namesake of torch does; weights and names stay."""
    for module in model.modules():
        module.__class__ = ORDINARY.get(type(module), type(module))


class Plain:
    """A model in training, step by step.

    Args:
        config: The run's configuration, of which precision and mode are not read.
        total: Steps of the whole training, for rates that decay.

    Attributes:
        log: What the last step read: the loss, log p(x|z), and KL by layer.
        left_out: Steps that changed nothing.
    """

    def __init__(self, config: Config[ModelConfig], total: int = 1_000_000) -> None:
        self.config, self.total, self.step, self.left_out = config, total, 0, 0
        with seeded(config.train.seed):
            self.model = build_model(config=config)
            ordinary(self.model)
            penalties = config.objective.penalties
            self.penalising = penalties and Penalising(config.objective, self.model)
        self.schemes = layer_schemes(config.objective, layer_names(self.model))
        device = torch.device("cpu")
        self.multipliers: Multipliers | None = new_multipliers(
            config.objective, self.schemes, device
        )
        self.optimizer = plain_optimizer(self.model, config.train)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.log: dict[str, float] = {}

    def __call__(self, x: Tensor) -> None:
        """Take one step on data in [0, 1], `[B, *shape]`."""
        objective, train = self.config.objective, self.config.train
        x = prepare(x, self.step, self.config)
        px, latents = self.model(x)
        weights = weights_at(objective, self.schemes, self.multipliers, self.step)
        terms = elbo(px, latents, x, *weights)
        loss = terms.loss
        if self.penalising:
            loss = loss + sum(cost.weighted for cost in self.penalising(self.step).values())
        self.optimizer.zero_grad()
        (loss / x[0].numel() if objective.per == "dimension" else loss).backward()
        limit = float("inf") if train.grad_clip is None else train.grad_clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=False).item()
        if train.grad_clip_value is not None:
            nn.utils.clip_grad_value_(self.model.parameters(), train.grad_clip_value, False)
        self.optimizer.param_groups[0]["lr"] = lr_at(train, self.step, self.total)
        if norm < (train.skip_norm or float("inf")):
            self.optimizer.step()
            self.average_in(train.ema)
        else:
            self.left_out += 1
        kl = {name: value.mean().item() for name, value in terms.kl.items()}
        self.log = {"loss": loss.item(), "log_px": terms.log_px.mean().item(), **kl}
        self.step += 1

    @torch.no_grad()
    def average_in(self, decay: float | None) -> None:
        """Let the average of the weights follow them, if there is one."""
        if decay is None:
            return
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].mul_(decay).add_(value, alpha=1 - decay)


def plain_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that the configuration names, parameter by parameter."""
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adamax": torch.optim.Adamax,
    }
    optimizer: torch.optim.Optimizer = kinds[train.optimizer](
        model.parameters(),
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        foreach=False,
    )
    return optimizer
