"""Configuration: what a YAML file may say, and a sentence for everything it may not.

A file has four sections: `model` (its fields belong to the system it names), `objective`, `data`
and `train`. Reading is strict where YAML 1.1 surprises: `1e-3` is a number, `no` is a word, and a
key given twice is an error. `Config` is generic in its model section, so that a system's own
fields are checked, documented and suggested like any other.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every section: frozen, strict, no unknown fields, docstrings become help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Plain values of a dumped section by dotted path, such as `layers[0].dim`."""
    if isinstance(value, dict):
        parts = [leaves(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()]
    elif isinstance(value, list):
        parts = [leaves(v, f"{path}[{i}]") for i, v in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for part in parts for key, leaf in part.items()}


class ModelConfig(Settings):
    """What every system's `Config` has; the rest of its fields are its own."""

    system: str
    """A built-in system (`hierarchy`) or the dotted name of a module with `Config` and `build`."""
    shape: Annotated[list[Count], Field(min_length=1)]
    """Shape of one datum: `[channels, height, width]` for images, `[n]` for vectors."""


class ConstantSchedule(Settings):
    """The same weight at every step."""

    kind: Literal["constant"] = "constant"
    value: NonNegative = 1.0
    """Weight of the KL terms."""


class LinearSchedule(Settings):
    """A straight line, then flat."""

    kind: Literal["linear"]
    steps: Count
    """Optimiser steps of the line, until `end` is reached."""
    start: NonNegative = 0.0
    """Weight where the line begins, and before."""
    end: NonNegative = 1.0
    """Weight from the end of the line on."""
    delay: NonNegative = 0.0
    """Optimiser steps before the line begins; it may begin between two steps."""
    least: NonNegative = 0.0
    """The weight is never less than this."""


class CosineSchedule(Settings):
    """Half a cosine, then flat."""

    kind: Literal["cosine"]
    steps: Count
    """Optimiser steps until `end` is reached."""
    start: NonNegative = 0.0
    """Weight at step 0."""
    end: NonNegative = 1.0
    """Weight from `steps` on."""


class CyclicSchedule(Settings):
    """Linear ramps that begin again every `period` steps."""

    kind: Literal["cyclic"]
    period: Count
    """Optimiser steps in one cycle."""
    ramp: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a cycle spent rising."""
    cycles: Count | None = None
    """Cycles until the weight stays at `end`; null goes on for ever."""
    start: NonNegative = 0.0
    """Weight at the beginning of a cycle."""
    end: NonNegative = 1.0
    """Weight at the top."""


Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | CyclicSchedule,
    Field(discriminator="kind"),
]


class FreeBits(Settings):
    """KL that costs nothing: a floor of `nats` for each unit named by `per`."""

    nats: NonNegative
    """The floor, in nats, of every layer, variable, channel or element."""
    per: Literal["layer", "variable", "channel", "element"] = "layer"
    """What the floor holds for: a layer's whole KL; that of each of its variables, of which
    bidirectional inference has two; a channel summed over space; or one number."""
    average: Literal["batch", "sample"] = "batch"
    """Compare the floor with the mean over the batch, or with each sample before the mean."""


class Balance(Settings):
    """Early in training, layers with much KL pay more and those with little less; mean one."""

    by: Literal["scale", "elements", "equal"] = "scale"
    """A layer's fair share of the KL: its positions over the layers that have as many (NVAE), its
    number of latent elements (Efficient-VDVAE), or the same for each."""
    steps: Count | None = None
    """Optimiser steps with balancing; null balances while the objective's own `kl_annealing` is
    below 1, as NVAE does."""


class Penalties(Settings):
    """What weights cost besides the KL."""

    spectral: NonNegative = 0.0
    """Weight of the sum of the largest singular values of all convolutions, but for transposed
    ones."""
    batch_norm: NonNegative = 0.0
    """Weight of the sum over all batch norms of their largest scale, in size."""
    start: Positive | None = None
    """Both weights where the annealing of the KL is 0; from there they go geometrically to their
    own, which they have where it is 1. null always has those."""


Inherit = Literal["inherit"]


class LayerObjective(Settings):
    """What one layer, or all layers that a pattern names, have otherwise than the objective."""

    beta: NonNegative | Inherit = "inherit"
    """Weight of the layer's KL, times its annealing."""
    kl_annealing: Schedule | Inherit = "inherit"
    """Weight of the layer's KL as a function of the optimiser step."""
    free_bits: FreeBits | Inherit | None = "inherit"
    """KL of the layer that costs nothing; null for none."""
    kl_target: Positive | Inherit | None = "inherit"
    """Nats at which a multiplier holds the layer's KL; null for no multiplier."""


class ObjectiveConfig(Settings):
    """What is optimised; the reported ELBO never depends on it.

    A layer's weight is beta x annealing x balancing x multiplier, each 1 unless said; free bits
    act on the KL that it weighs.
    """

    per: Literal["datum", "dimension"] = "datum"
    """What gradients are of: the loss in nats per datum, or over the numbers in a datum, as some
    published thresholds for gradient norms mean it. Everything reported stays per datum."""
    beta: NonNegative = 1.0
    """Weight of all KL terms, times the annealing."""
    kl_annealing: Schedule = ConstantSchedule()
    """Weight of the KL terms as a function of the optimiser step."""
    free_bits: FreeBits | None = None
    """KL that costs nothing; null for none."""
    kl_target: Positive | None = None
    """Nats at which a multiplier holds the KL of every layer; null for no multipliers."""
    kl_target_rate: Annotated[float, Field(gt=0, le=1)] = 0.02
    """How fast multipliers learn: the most that the logarithm of one grows in a step."""
    balance: Balance | None = None
    """Balancing of the layers early in training; null for none."""
    penalties: Penalties | None = None
    """Penalties of weights; null for none."""
    layers: dict[str, LayerObjective] = {}
    """Settings of single layers, by name (`z1`) or pattern (`z[2-5]`, `*`). Of several patterns
    that fit, a later one wins field by field; a name wins over patterns."""

    @model_validator(mode="after")
    def _balancing_acts(self) -> ObjectiveConfig:
        schedule = self.kl_annealing
        if isinstance(schedule, ConstantSchedule):
            least = schedule.value
        else:
            least = max(min(schedule.start, schedule.end), getattr(schedule, "least", 0.0))
        if self.balance is not None and self.balance.steps is None and least >= 1.0:
            raise ValueError(
                "'balance' acts while 'kl_annealing' is below 1, which it never is; "
                "give an annealing, or balance.steps"
            )
        return self


class DataConfig(Settings):
    """Which data, and how they are prepared. `data: NAME` is short for `data: {name: NAME}`."""

    name: Annotated[str, Field(min_length=1)]
    """`digits` (bundled), `mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `imagenet32`,
    `imagenet64`, `celeba64`, a folder of images, or a .npy or .npz file."""
    root: str | None = None
    """Folder of sets with a name; null takes $LADDER_DATA, then the user's cache folder."""
    binarize: Literal["none", "static", "dynamic"] = "none"
    """Grey values as they are, drawn once, or drawn again for every training batch."""
    resize: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """Resize to this height and width (bilinear); null keeps the size, except for `digits`,
    which are always brought to the model's."""
    channels: Literal[1, 3] | None = None
    """Read images as grey (1) or colour (3); null takes what they have."""
    shuffle: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of NumPy's `RandomState(seed).permutation` of the training data, applied before
    anything is held out (the last tenth for testing, where a source has no test data of its own,
    and `validation`); null keeps their order."""
    validation: Annotated[int, Field(ge=0)] = 0
    """Data held out from the training set to choose `best`; 0 evaluates on the test split and
    chooses nothing."""
    hold_out: Literal["last", "first"] = "last"
    """From which end of the training data `validation` is taken."""
    flip: bool = False
    """Whether each image of a training batch is mirrored, left to right, with probability 1/2."""


class CosineDecay(Settings):
    """Half a cosine from the rate of the last step of the warm-up down to `end`.

    After W steps of warm-up from zero it begins at lr (W - 1) / W, as published.
    """

    kind: Literal["cosine"]
    end: NonNegative = 0.0
    """Learning rate of the last step, or of the last `every` steps."""
    every: Count = 1
    """Steps between two changes of the rate; as many as an epoch has, for a rate by epoch."""


class ExponentialDecay(Settings):
    """`lr` times `rate`^n, with n the steps done since the warm-up: the first one has `lr`."""

    kind: Literal["exponential"]
    rate: Annotated[float, Field(gt=0, le=1)]
    """Factor of the learning rate from one step to the next."""
    least: NonNegative = 0.0
    """The learning rate is never less than this."""


LrDecay = Annotated[CosineDecay | ExponentialDecay, Field(discriminator="kind")]


class TrainConfig(Settings):
    """How long, how, and what is written."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Passes over the training set; give this or `steps`, of which the last one said counts."""
    steps: Count | None = None
    """Optimiser steps; give this or `epochs`."""
    min_steps: Count | None = None
    """With `epochs`: at least so many steps, because an epoch of a small set is few. Dropped by
    whoever overrides `epochs` or `steps`."""
    batch_size: Annotated[int, Field(ge=1, lt=2**31)] = 128
    """Data in one step."""
    optimizer: Literal["adam", "adamw", "adamax"] = "adam"
    """Adam with coupled (adam) or decoupled (adamw) weight decay, or Adamax (coupled)."""
    lr: Positive = 1e-3
    """Learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly to `lr`."""
    warmup_from_zero: bool = False
    """Whether the rate of the first step is 0, as where a schedule moves after the step."""
    lr_decay: LrDecay | None = None
    """How the learning rate falls after the warm-up; null keeps it."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    """Decay of Adam's two averages."""
    eps: Positive = 1e-8
    """Adam's epsilon."""
    bias_correction: bool = True
    """Whether the mean of the gradient, which starts from 0, is divided by 1 - beta1^t; false,
    with adamax only, makes the first steps smaller, as in BIVA's TensorFlow original."""
    weight_decay: NonNegative = 0.0
    """Weight decay."""
    grad_clip: Positive | None = None
    """Largest global gradient norm; null does not clip."""
    grad_clip_value: Positive | None = None
    """Largest absolute value of an element of the gradient, after `grad_clip`; null does not
    clip."""
    skip_norm: Positive | None = None
    """Steps whose gradient norm before clipping is this or more are left out, and so are those
    that are not finite; null leaves none out."""
    skip_relative: Annotated[float, Field(gt=1)] | None = None
    """The same for norms of more than so many times their running mean, which follows them, so
    that no level of the norm can stop training for ever; 10 catches spikes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the average of the weights used to evaluate and sample; null keeps none."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initialisation, order and noise."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; or `cpu`, `cuda`, `cuda:1`, ..."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the networks, tf32 on GPUs alone; distributions and losses are float32 either way."""
    compile: Literal["auto", "none", "layers", "model"] = "auto"
    """Compile layer by layer, or model and objective as a whole, which pays for small models that
    train for long; auto takes layers, on a GPU, for what is trained long enough."""
    cuda_graph: bool | None = None
    """Whether a GPU gets a step as one graph of work; null does so for small models."""
    accumulate: Count = 1
    """Parts in which a process takes its data of a batch, adding up their gradients; doubled when
    memory runs out. Batch norm sees each part by itself."""
    recompute: bool = False
    """Whether only the inputs of layers are kept for the backward pass, and what is inside them
    is computed again: the same gradients and less memory for more time."""
    channels_last: bool | None = None
    """Whether the channels of images lie next to each other in memory; null does so on a GPU in
    bfloat16, whose convolutions want it. The noise is the same either way."""
    log_every: Count = 50
    """Steps between two lines of metrics.jsonl."""
    evaluate_every: Count | None = None
    """Steps between two evaluations; null evaluates after every epoch, or after as many as make
    100 steps."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints."""
    keep: Count = 3
    """Newest checkpoints that are kept; `best` is kept as well."""
    time_limit: Positive | None = None
    """Minutes after which training stops with a checkpoint (exit code 75); null for none."""
    resume: bool | str = False
    """true goes on with the run in `--out` and fails if there is none, auto starts one then, a
    path goes on with the run there."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of 'epochs' and 'steps'")
        if self.steps is not None and self.min_steps is not None:
            raise ValueError("'min_steps' goes with 'epochs', not with 'steps'")
        if not self.bias_correction and self.optimizer != "adamax":
            raise ValueError(
                f"'bias_correction' false goes with 'optimizer' adamax, not with {self.optimizer}"
            )
        return self

    @model_validator(mode="after")
    def _decay_falls(self) -> TrainConfig:
        cosine = isinstance(self.lr_decay, CosineDecay)
        name = "end" if cosine else "least"
        last = getattr(self.lr_decay, name, 0.0)
        if last > self.lr:
            raise ValueError(
                f"'lr_decay.{name}' is {last}, which should be at most 'lr', {self.lr}"
            )
        if cosine and self.warmup_from_zero and self.warmup_steps == 1:
            raise ValueError(
                "'lr_decay' begins at the last rate of the warm-up, which is 0 with "
                "'warmup_from_zero' and a single one of 'warmup_steps'; give 0 steps, or more"
            )
        return self

    def total_steps(self, data: int) -> int:
        """Optimiser steps for a training set of so many data."""
        if self.steps is not None:
            return self.steps
        per_epoch = math.ceil(data / self.batch_size)
        return max(1, self.min_steps or 1, round((self.epochs or 0.0) * per_epoch))


Model = TypeVar("Model", bound=ModelConfig)


class Config(Settings, Generic[Model]):
    """A whole file: the model, what it optimises, on which data, and how it trains."""

    preset: str | None = None
    """The preset that everything not said here is taken from."""
    model: Model
    """The model; its fields depend on `system`."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is optimised."""
    data: DataConfig
    """Which data."""
    train: TrainConfig
    """How it is trained."""
