"""Many small models at once: one forward and backward pass for all of them.

A small dense model leaves most of a GPU idle, and of a step's time most is the launching of
kernels. Models that are alike have their weights stacked, `[M, ...]`, so that their products are
one batched product, and their step is about as many kernels as that of one. Each model's own
parameters are views of the stack; clipping, optimiser, average, metrics, evaluations and
checkpoints are its own, as if it trained alone.

The noise is each model's own as well: it is drawn as alone, from (seed, step), and handed to the
batched pass. So a model that trains together learns what it would have learned alone, to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ladder.build import build_model
from ladder.capture import Replay
from ladder.config import Config, ModelConfig
from ladder.objectives import by_layer
from ladder.sampling import layer_names
from ladder.train.course import Course
from ladder.train.device import products
from ladder.train.feed import batches
from ladder.train.schemes import Weights, weights_at
from ladder.train.state import is_small
from ladder.train.step import begin, end, forward_terms, metrics, prepared, update

# What may differ between models that train together: all that is done to one by itself.
OWN = {
    "train": {
        *("seed", "steps", "epochs", "min_steps", "optimizer", "lr", "warmup_steps"),
        *("warmup_from_zero", "lr_decay", "betas", "eps", "bias_correction", "weight_decay"),
        *("grad_clip", "grad_clip_value", "skip_norm", "skip_relative", "ema"),
        *("log_every", "evaluate_every", "checkpoint_every", "keep", "time_limit", "resume"),
    },
    "objective": {"beta", "kl_annealing"},
}


def kind_of(config: Config[ModelConfig]) -> str:
    """What models that train together have in common, besides their step, as text to compare."""
    return config.model_dump_json(exclude={**OWN, "preset": True})


def obstacle(config: Config[ModelConfig]) -> str | None:
    """Why a model cannot train together with others; `None` if it can."""
    train = config.train
    with torch.device("meta"):
        model = build_model(config=config)
    if not is_small(model):
        return "it is large"
    if any(p.ndim > 2 for p in model.parameters()):
        return "it has convolutions"
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()):
        return "it has dropout"
    if config.objective.penalties is not None:
        return "it has penalties of weights"
    if train.accumulate > 1 or train.recompute:
        return "its batches are taken in parts, or its layers twice"
    if train.compile not in ("auto", "none"):
        return "it is compiled"
    return None


class Together:
    """Does one step of every training after another, all in one pass.

    Args:
        courses: Trainings of one kind, see `kind_of`, at one step; their weights come to lie in
            one stack.
    """

    def __init__(self, courses: Sequence[Course]) -> None:
        self.courses = list(courses)
        self.sources = [batches(c.setup, c.state.step) for c in courses]
        models = [course.state.model for course in courses]
        self.model = models[0]
        self.parameters = _stacked([dict(model.named_parameters()) for model in models])
        self.buffers = _stacked([dict(model.named_buffers()) for model in models])
        config, device = courses[0].setup.config, courses[0].setup.device
        self.batch = min(config.train.batch_size, len(courses[0].setup.images))
        shape = (len(courses), self.batch, *config.model.shape)
        self.x = torch.zeros(shape, device=device)
        self.noise = _noise(self.model, self.x)
        self.replay: Callable[[], None] = lambda: self._work(self.x, self.noise)
        if config.train.cuda_graph is not False:
            self.replay = Replay(self.replay, device)

    def __call__(self) -> None:
        """Do the next step of every training."""
        data = [next(source) for source in self.sources]
        n = len(data[0])
        whole = n == self.batch  # else the last batch of an epoch
        x = self.x if whole else self.x[:, :n].clone()
        noise = self.noise if whole else [values[:, :n].clone() for values in self.noise]
        for number, (course, own) in enumerate(zip(self.courses, data, strict=True)):
            begin(course.state, course.setup.config)
            x[number].copy_(prepared(own, course.setup.config))
            for values in noise:
                values[number].normal_()  # what randn_like does
        if whole:
            self.replay()
        else:
            self._work(x, noise)
        for course in self.courses:
            end(course.state, n)

    def _work(self, x: Tensor, noise: list[Tensor]) -> None:
        means, n = self._gradients(x, noise), x.shape[1]
        for number, course in enumerate(self.courses):
            own = {name: values[number] for name, values in means.items()}
            update(course.state, own, course.setup.config, n, n)

    def _gradients(self, x: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        """Leave gradients in every model's parameters; metrics of all models, `[M]`."""
        config = self.courses[0].setup.config
        for course in self.courses:
            if course.state.statistics is not None:
                course.state.statistics.keep()
        betas, on, fixed = self._weights()

        def measured(
            parameters: Any, buffers: Any, x: Tensor, noise: list[Tensor], beta: Any, on: Any
        ) -> dict[str, Tensor]:
            def model(x: Tensor) -> Any:
                with _Given(noise):
                    return functional_call(self.model, (parameters, buffers), (x,))

            balancing = fixed.balancing and fixed.balancing._replace(on=on)
            weights = Weights(beta, fixed.free_bits, balancing)
            return metrics(forward_terms(model, x, weights, config))

        for stack in self.parameters.values():
            stack.grad = None
        scale = x[0, 0].numel() if config.objective.per == "dimension" else 1
        with products(config.train.precision, x.device):
            pass_through = vmap(measured, randomness="error")
            means = pass_through(self.parameters, self.buffers, x, noise, betas, on)
            (means["train/loss"].sum() / scale).backward()
        for name, stack in self.parameters.items():
            if stack.grad is not None:
                for course, own in zip(self.courses, stack.grad.unbind(), strict=True):
                    course.state.model.get_parameter(name).grad = own
        return {name: values.detach() for name, values in means.items()}

    def _weights(self) -> tuple[Any, Tensor, Weights]:
        """What the loss weighs: betas and balancing, `[M]`, and what is the same for all."""
        own = []
        for course in self.courses:
            state, objective = course.state, course.setup.config.objective
            own.append(weights_at(objective, state.schemes, state.multipliers, state.clock))
        if any(isinstance(w.beta, dict) for w in own):  # where layers differ in one of them
            names = layer_names(self.model)
            own = [w._replace(beta=by_layer(w.beta, torch.ones(()), names)) for w in own]
        betas = tree_map(lambda *values: torch.stack(values), *(w.beta for w in own))
        clock = self.courses[0].state.clock
        ons = [clock.float() if w.balancing is None else w.balancing.on for w in own]
        return betas, torch.stack([torch.as_tensor(on) for on in ons]), own[0]


def _stacked(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each model's tensors in one stack `[M, ...]` by name, and themselves views of it."""
    stacks = {}
    for name, first in members[0].items():
        own = [member[name] for member in members]
        whole = torch.stack([tensor.detach() for tensor in own])
        for tensor, view in zip(own, whole.unbind(), strict=True):
            tensor.data = view
        stacks[name] = whole.requires_grad_(first.requires_grad)
    return stacks


class _Noted(TorchFunctionMode):
    """Notes the shapes of noise that is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.randn_like:
            self.shapes.append(args[0].shape)
        return function(*args, **(kwargs or {}))


class _Given(TorchFunctionMode):
    """Hands out noise instead of drawing it."""

    def __init__(self, noise: Iterable[Tensor]) -> None:
        super().__init__()
        self.noise: Iterator[Tensor] = iter(noise)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.randn_like:
            return next(self.noise)
        return function(*args, **(kwargs or {}))


def _noise(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Room for the noise of a pass, in the order drawn; float32 `[M, B, *latent]` each."""
    with _Noted() as noted:
        copy.deepcopy(model).to("meta")(x[0].to("meta"))
    return [x.new_empty((x.shape[0], *shape), dtype=torch.float32) for shape in noted.shapes]
