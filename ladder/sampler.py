"""Draws from the prior again and again: on a GPU the top-down pass is captured as one launch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ladder.capture import Replay
from ladder.errors import UserError
from ladder.latent import Latent
from ladder.likelihoods import Observation
from ladder.model import HierarchicalVAE, Temperature
from ladder.noise import seeded
from ladder.sampling import check_number, check_temperature


class Sampler:
    """Draws of one number and one temperature from a model's prior, as often as it is called.

    On a GPU the first calls run the model as it is, the next captures the whole top-down pass as
    a CUDA graph, and from then on a call is one launch: the weights may change in place, their
    storage may not. On the CPU every call runs the model. Layers that `compile_layers` compiled
    stay so in either case. Whether draws are finite is not checked, because that would wait for
    the GPU.

    Args:
        model: The model, in evaluation mode.
        n: Number of data that a call draws.
        temperature: Multiplies the standard deviation of every prior, or by layer name of some. A
            0-dim tensor on the model's device may be changed in place between calls.

    Raises:
        UserError: If `n` or a temperature is out of range, a name is not a layer's, or the model
            is in training mode.
    """

    def __init__(self, model: HierarchicalVAE, n: int, temperature: Temperature = 1.0) -> None:
        check_number("Sampler", n)
        check_temperature(model, temperature)
        if model.training:
            raise UserError("Sampler: the model is in training mode; call its eval() first")
        self.model, self.n, self.temperature = model, n, temperature
        self.replay = Replay(self._decode, next(model.parameters()).device)

    @torch.no_grad()
    def __call__(self, seed: int | None = None) -> tuple[Observation, dict[str, Latent]]:
        """Draw.

        Args:
            seed: Seed of the draws; `None` goes on with torch's generator.

        Returns:
            p(x|z), `[n, *shape]`, and the latents by name, top first.
        """
        with seeded(seed):
            result = self.replay()
        # A captured graph writes into the same tensors every time.
        return result if self.replay.graph is None else tree_map_only(Tensor, torch.clone, result)

    def _decode(self) -> tuple[Observation, dict[str, Latent]]:
        return self.model.decode(self.n, temperature=self.temperature)
