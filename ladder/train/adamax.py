"""Adamax without a word to the host: it stops by itself at a step that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Integers as wide as a floating-point number, in bytes.
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Adamax(torch.optim.Optimizer):
    """The update of `torch.optim.Adamax`, leaving everything as it is once `found_inf` is 1.

    torch's own has no fused kernel, and only fused optimisers know `found_inf`. A parameter that
    got no gradient is left out; the bias correction is that of its group's first parameter with
    one.

    Args:
        parameters: What to optimise.
        lr: Learning rate.
        betas: Decay of the mean of the gradient, and of its largest absolute value.
        eps: Added to the absolute value of the gradient.
        weight_decay: Coupled weight decay.
        bias_correction: Whether the mean of the gradient is divided by 1 - beta1^t.

    Attributes:
        found_inf: 0-dim float on the parameters' device; with 1 nothing changes but gradients,
            which become zero, nor does the step count. `None` is never.

    References:
        Adam: A Method for Stochastic Optimization, section 7.1 (Kingma & Ba, 2015),
        https://arxiv.org/abs/1412.6980
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options["bias_correction"] = bias_correction
        # With this, loading a state puts the step count on the parameters' device.
        super().__init__(parameters, {**options, "capturable": True})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a saved state; older ones do not speak of the correction, which they had."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("bias_correction", True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(p, group["eps"]) for p in parameters]
        steps, means, peaks = ([s[k] for s in states] for k in ("step", "exp_avg", "exp_inf"))
        gradients = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(
                torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            )
        alive = self._alive(steps[0])
        _keep(gradients, alive)
        # Lists and products only: adding a tensor to a list would ask the host for its value.
        torch._foreach_add_(steps, [alive.to(steps[0])] * len(steps))
        decay1, decay2 = (1.0 - alive.double() * (1.0 - beta) for beta in group["betas"])
        torch._foreach_mul_(means, decay1.to(means[0]))
        torch._foreach_add_(means, gradients, alpha=1.0 - group["betas"][0])
        torch._foreach_mul_(peaks, decay2.to(peaks[0]))
        sizes = torch._foreach_abs(gradients)
        torch._foreach_add_(sizes, group["eps"])
        torch._foreach_maximum_(peaks, sizes)
        if group["bias_correction"]:
            rate = group["lr"] / (1.0 - group["betas"][0] ** steps[0].double())
        else:
            rate = torch.ones_like(steps[0], dtype=torch.float64) * group["lr"]
        change = torch._foreach_div(means, peaks)
        torch._foreach_mul_(change, torch.where(alive, -rate, 0.0).to(change[0]))
        torch._foreach_add_(parameters, change)

    def _alive(self, step: Tensor) -> Tensor:
        if self.found_inf is None:
            return torch.ones_like(step, dtype=torch.bool)
        return self.found_inf == 0

    def _state(self, parameter: Tensor, eps: float) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            # No less than after any step, or a failed first one would divide 0 by 0.
            state["exp_inf"] = torch.full_like(parameter, eps)
        return state


def _keep(tensors: list[Tensor], alive: Tensor) -> None:
    """Make the tensors zero unless alive, NaN too: as integers, which know none."""
    bits = [t.view(BITS[t.element_size()]) for t in tensors]
    for kind in {b.dtype for b in bits}:
        torch._foreach_mul_([b for b in bits if b.dtype == kind], alive.to(kind))
