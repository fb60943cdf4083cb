"""The spine: two passes, up and down, and nothing else.

x -- bottom_up --> {name: evidence} -- top_down --> features, {name: Latent}
features -- likelihood --> p(x|z)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ladder.errors import UserError
from ladder.execution import Caller
from ladder.latent import Latent

NOTHING: Mapping[str, Any] = MappingProxyType({})
# One for all priors, or by layer name, where layers that are not named have 1.
Temperature = float | Tensor | Mapping[str, float | Tensor]


def temperature_of(name: str, temperature: Temperature) -> float | Tensor:
    """The temperature of the layer `name`."""
    return temperature.get(name, 1.0) if isinstance(temperature, Mapping) else temperature


class Upward(Caller):
    """An upward pass, which also goes in two steps: what no noise reaches, and the rest.

    `forward(x)` is `draw(prepare(x))`; many draws for one datum share what was prepared. This is
    the pass of features alone: all of it is prepared. One that draws has its own two steps.
    """

    def prepare(self, x: Tensor) -> Any:
        """Return what no noise reaches: a pytree of tensors `[B, ...]`."""
        return self(x)

    def draw(self, prepared: Any) -> dict[str, Any]:
        """Go on from what was prepared; evidence by layer name."""
        evidence: dict[str, Any] = prepared
        return evidence


class Constant(nn.Module):
    """The state above the top layer: one tensor for every datum.

    Args:
        shape: Shape of the state without the batch; `(0,)` is no state at all.
        learned: Whether the tensor, zeros at first, is a parameter.
    """

    value: Tensor

    def __init__(self, *shape: int, learned: bool = False) -> None:
        super().__init__()
        value = torch.zeros(1, *shape)
        if learned:
            self.value = nn.Parameter(value)
        else:
            # An empty state has nothing to save; any other must survive `to_empty` and loading.
            self.register_buffer("value", value, persistent=value.numel() > 0)

    def forward(self, n: int) -> Tensor:
        """Return the state for `n` data, `[n, *shape]`."""
        return self.value.expand(n, *self.value.shape[1:])


class TopDown(Caller):
    """The generative path and, with evidence, the top-down half of inference.

    Args:
        start: `n -> state` above the top layer.
        layers: Stochastic layers by name, `zL` to `z1`: top first.
        finish: `state -> features` for the likelihood.
    """

    def __init__(
        self, start: nn.Module, layers: Mapping[str, nn.Module], finish: nn.Module
    ) -> None:
        super().__init__()
        expected = [f"z{i}" for i in range(len(layers), 0, -1)]
        if list(layers) != expected:
            raise ValueError(
                f"TopDown: layers are {list(layers)}, should be {expected}, top first"
            )
        self.start = start
        self.layers = nn.ModuleDict(layers)
        self.finish = finish

    def forward(
        self,
        n: int,
        evidence: Mapping[str, Any] = NOTHING,
        z: Mapping[str, Tensor] = NOTHING,
        temperature: Temperature = 1.0,
    ) -> tuple[Any, dict[str, Latent]]:
        """Walk from the top to the data.

        Args:
            n: Number of data B.
            evidence: What the bottom-up pass says, by layer; a layer without it draws from its
                prior.
            z: Values to take as they are, by layer, each `[B, *latent]`.
            temperature: Multiplies the standard deviation of the priors that are drawn from: of
                all, or by layer name; layers that a mapping does not name have 1.

        Returns:
            Features for the likelihood, and every layer's latent by name, top first.
        """
        state = self.start(n)
        latents: dict[str, Latent] = {}
        for name, layer in self.layers.items():
            t = temperature_of(name, temperature)
            state, latents[name] = self.call(layer, state, evidence.get(name), z.get(name), t)
        return self.finish(state), latents


class HierarchicalVAE(nn.Module):
    """A hierarchical VAE: `bottom_up`, `top_down`, `likelihood`.

    Args:
        bottom_up: `x -> {name: evidence}`, an `Upward` or any module.
        top_down: The generative path.
        likelihood: `features -> p(x|z)`, a value with `log_prob`, `mean` and `sample`.

    Attributes:
        config: The model section it was built from; set by `build_model`.
        shape: Shape of one datum; set by `build_model`.
    """

    config: Any = None
    shape: tuple[int, ...] | None = None

    def __init__(self, bottom_up: nn.Module, top_down: TopDown, likelihood: nn.Module) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.top_down = top_down
        self.likelihood = likelihood

    def forward(self, x: Tensor) -> tuple[Any, dict[str, Latent]]:
        """Infer every latent of `x`, `[B, *shape]`, and return p(x|z) and the latents.

        Raises:
            UserError: If x has another shape than the model's data, or holds integers.
        """
        _check(x, self.shape)
        return self._explain(x.shape[0], self.bottom_up(x))

    def prepare(self, x: Tensor) -> Any:
        """Do what of the upward pass no noise reaches, for any number of calls of `draw`.

        Args:
            x: Data, `[B, *shape]`.

        Returns:
            A pytree of tensors `[B, ...]`; `x` itself where noise may reach all of the upward
            pass, because it does not say where, or drops features out while it trains.

        Raises:
            UserError: If x has another shape than the model's data, or holds integers.
        """
        _check(x, self.shape)
        up = self._upward()
        return x if up is None else up.prepare(x)

    def draw(self, n: int, prepared: Any) -> tuple[Any, dict[str, Latent]]:
        """Go on from what was prepared: `draw(B, prepare(x))` is `model(x)`.

        Args:
            n: Number of data, B.
            prepared: What `prepare` returned in the same mode, or that with each tensor repeated.

        Returns:
            p(x|z) and the latents, as the model returns them.
        """
        up = self._upward()
        return self._explain(n, self.bottom_up(prepared) if up is None else up.draw(prepared))

    def _upward(self) -> Upward | None:
        """The upward pass, if it is known where noise reaches it."""
        dropout = (m for m in self.bottom_up.modules() if isinstance(m, _DropoutNd))
        if any(m.training and m.p > 0 for m in dropout):
            return None
        return self.bottom_up if isinstance(self.bottom_up, Upward) else None

    def _explain(self, n: int, evidence: Mapping[str, Any]) -> tuple[Any, dict[str, Latent]]:
        features, latents = self.top_down(n, evidence)
        return self.likelihood(features), latents

    def decode(
        self,
        n: int,
        z: Mapping[str, Tensor] = NOTHING,
        temperature: Temperature = 1.0,
    ) -> tuple[Any, dict[str, Latent]]:
        """Generate `n` data: latents in `z` as given, the others from their priors.

        Args:
            n: Number of data B.
            z: Values by layer name, each `[B, *latent]`.
            temperature: Multiplies the standard deviation of the priors that are drawn from: of
                all, or by layer name; layers that a mapping does not name have 1.

        Returns:
            p(x|z) and the latents.
        """
        features, latents = self.top_down(n, z=z, temperature=temperature)
        return self.likelihood(features), latents


def _check(x: Tensor, shape: tuple[int, ...] | None) -> None:
    if not x.is_floating_point():
        raise UserError(f"model: x is {x.dtype}; give floats in [0, 1], such as bytes over 255")
    if shape is not None and tuple(x.shape) == shape:
        raise UserError(f"model: x has shape {list(x.shape)}, one datum alone; give x[None]")
    if shape is not None and tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise UserError(
            f"model: x has shape {list(x.shape)}, but the model's data are [B, {wanted}]; "
            f"bring x to that, or build the model with shape={list(x.shape[1:])}"
        )
