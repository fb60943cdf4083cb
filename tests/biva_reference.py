"""A second, functional implementation of the released BIVA, with its LVAE and VAE stages, from
its description, in its own layout: what the library's is compared with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Noise = Callable[[tuple[int, ...]], Tensor]
Block = Sequence[int]  # filters, kernel, stride

# Where the passes of the original, in TensorFlow, differ.
ACTIVATION = "activation"  # non-residual blocks begin with one too
NARROWER = "narrower"  # no residual to fewer channels, instead of the first ones
WIDER = "wider"  # a residual to more channels, padded with zeros, instead of none
POOL = "pool"  # the residual's window is the stride, instead of 3
FLOOR = "floor"  # 1e-8 is added to the log-variance
CONCAT = "concat"  # the top block sees top-down features before bottom-up ones
MERGE = "merge"  # merges have the first kernel of the stage above, instead of 3
TENSORFLOW = frozenset({ACTIVATION, NARROWER, WIDER, POOL, FLOOR, CONCAT, MERGE})


class Latent(NamedTuple):
    N: int
    dense: bool = True
    kernel: int = 3  # of a convolutional latent's heads


class Plan(NamedTuple):
    stage: str  # BIVA, LVAE or VAE
    stages: Sequence[Sequence[Block]]  # nearest to the images first
    latents: Sequence[Latent]
    shape: tuple[int, int, int]
    features_out: int
    conditional_bu: bool = False
    no_skip: bool = False
    scale: str = "softplus"  # or none or tanh: from the raw number to the log-variance
    tensorflow: bool = False
    differences: frozenset[str] = TENSORFLOW  # of those, the ones to follow


class Run(NamedTuple):
    """One pass over the network, which writes down every weight it asks for."""

    plan: Plan
    state: State | None  # None where only the shapes are of interest
    noise: Noise
    shapes: Shapes

    def original(self, difference: str) -> bool:
        return self.plan.tensorflow and difference in self.plan.differences


class Inferred(NamedTuple):
    """What the bottom-up pass leaves at a stage: nothing where the prior is sampled."""

    features: Tensor | None = None  # to be merged with the top-down ones
    drawn: tuple[Normal, Tensor] | None = None  # a posterior and its sample


def mnist(stage: str = "BIVA") -> Plan:
    """The published configuration for MNIST."""
    first, plain = [[64, 5, 1], [64, 5, 1], [64, 5, 2]], [[64, 3, 1]] * 3
    stages = [first, *[plain] * 4, [*plain[:2], [64, 3, 2]]]
    return Plan(stage, stages, [Latent(n) for n in (48, 40, 32, 24, 16, 8)], (1, 28, 28), 1)


def cifar10(stage: str = "BIVA") -> Plan:
    """The published configuration for CIFAR-10."""
    first, plain = [[96, 5, 1], [96, 5, 1], [96, 5, 2]], [[96, 3, 1]] * 3
    halved = [*plain[:2], [96, 3, 2]]
    stages = [first, *[plain] * 9, halved, *[plain] * 3, halved]
    kernels = [16] * 10 + [8] * 4 + [4]
    latents = [Latent(38 - 2 * i, False, k) for i, k in enumerate(kernels)]
    return Plan(stage, stages, latents, (3, 32, 32), 100)


def fill(shapes: Shapes) -> State:
    """Weights that anyone can make from the names and shapes alone."""
    state: State = {}
    for key, shape in shapes.items():
        last = key.rsplit(".", 1)[-1]
        if last == "initialized":
            state[key] = torch.ones((), dtype=torch.bool)
            continue
        seed = zlib.crc32(key.encode())
        v = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        scaled = {"weight_g": 1 + 0.1 * v, "bias": 0.05 * v, "prior": 0 * v}
        weight = v / math.sqrt(math.prod(shape[1:]))
        # The recorded numbers are those of weights in single precision.
        state[key] = torch.from_numpy(scaled.get(last, weight)).double()
    return state


# --- layers --------------------------------------------------------------------------------------


def param(run: Run, key: str, shape: tuple[int, ...]) -> Tensor:
    run.shapes[key] = shape
    if run.state is None:
        return torch.zeros(shape, device="meta")
    if run.state[key].shape != shape:
        raise ValueError(f"{key} is {list(run.state[key].shape)}, not {list(shape)}")
    return run.state[key]


def normed(
    run: Run, name: str, kind: str, shape: tuple[int, ...], dim: int = 0
) -> tuple[Tensor, Tensor]:
    """Weight and bias; `dim` is that of the output channels, each of which has its norm."""
    run.shapes[f"{name}.initialized"] = ()
    others = [i for i in range(len(shape)) if i != dim]
    ones = tuple(1 if i in others else n for i, n in enumerate(shape))
    v = param(run, f"{name}.{kind}.weight_v", shape)
    g = param(run, f"{name}.{kind}.weight_g", ones)
    bias = param(run, f"{name}.{kind}.bias", (shape[dim],))
    return g * v / torch.linalg.vector_norm(v, dim=others, keepdim=True), bias


def same(x: Tensor, k: int, stride: int) -> Tensor:
    """Zeros around `x` for a window of `k`; of an odd number, the last row has one more."""
    sides: list[int] = []
    for n in (x.shape[3], x.shape[2]):
        total = max(0, (-(-n // stride) - 1) * stride + k - n)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def conv(run: Run, name: str, x: Tensor, cout: int, k: int, stride: int = 1) -> Tensor:
    weight, bias = normed(run, name, "conv", (cout, x.shape[1], k, k))
    return F.conv2d(same(x, k, stride), weight, bias, stride)


def conv_up(run: Run, name: str, x: Tensor, cout: int, k: int, stride: int) -> Tensor:
    """A transposed convolution, to `stride` times the size; its kernel is no smaller."""
    weight, bias = normed(run, name, "conv", (x.shape[1], cout, k, k), dim=1)
    y, start = F.conv_transpose2d(x, weight, bias, stride), (k - stride) // 2
    high, wide = (start + stride * n for n in x.shape[2:])
    return y[:, :, start:high, start:wide]


def dense(run: Run, name: str, x: Tensor, out: int) -> Tensor:
    x = x.flatten(1)
    return F.linear(x, *normed(run, name, "linear", (out, x.shape[1])))


def beside(run: Run, name: str, aux: Tensor, size: int, block: Block) -> Tensor:
    """The auxiliary input at the size of the block's input: one divides the other."""
    filters, k, _ = block
    aux, n = F.elu(aux), aux.shape[-1]
    if n == size:
        return conv(run, name, aux, filters, 1)
    if n > size:
        return conv(run, name, aux, filters, k, n // size)
    return conv_up(run, name, aux, filters, k, size // n)


def shortcut(run: Run, x: Tensor, y: Tensor, stride: int) -> Tensor:
    """What a residual block adds to its output `y`."""
    wider = y.shape[1] - x.shape[1]
    dropped = (wider < 0 and run.original(NARROWER)) or (wider > 0 and not run.original(WIDER))
    if dropped or y.shape[-1] > x.shape[-1]:
        return torch.zeros_like(y)
    x = F.pad(x, (0, 0, 0, 0, 0, wider))  # crops where the number is negative
    if y.shape[-1] == x.shape[-1]:
        return x
    if run.original(POOL):  # TensorFlow's padding is not part of a mean
        return F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
    return F.avg_pool2d(same(x, 3, stride), 3, stride)


def gated(run: Run, name: str, x: Tensor, block: Block, aux: Tensor | None, *how: str) -> Tensor:
    """One block; `how` may say that it is `plain`, not residual, or goes `up`."""
    filters, k, stride = block
    bare = "plain" in how and not run.original(ACTIVATION)
    y = conv(run, f"{name}.conv1", x if bare else F.elu(x), filters, k)
    if aux is not None:
        y = y + beside(run, f"{name}.aux_op", aux, x.shape[-1], block)
    layer = conv_up if "up" in how and stride > 1 else conv
    y = layer(run, f"{name}.conv2", F.elu(y), 2 * filters, k, stride)
    value, gate = y.chunk(2, dim=1)
    y = value * gate.sigmoid()
    return y if "plain" in how else y + shortcut(run, x, y, stride)


def log_variance(run: Run, raw: Tensor) -> Tensor:
    if run.plan.scale == "softplus":
        return F.softplus(raw) + (1e-8 if run.original(FLOOR) else 0.0)
    return raw.tanh() if run.plan.scale == "tanh" else raw


def normal(mean: Tensor, log_var: Tensor) -> Normal:
    return Normal(mean, (0.5 * log_var).exp(), validate_args=False)


def head(run: Run, name: str, h: Tensor, latent: Latent) -> Normal:
    h, out = F.elu(h), 2 * latent.N
    raw = dense(run, name, h, out) if latent.dense else conv(run, name, h, out, latent.kernel)
    mean, raw = raw.chunk(2, dim=1)
    return normal(mean, log_variance(run, raw))


def draw(run: Run, d: Normal) -> Tensor:
    return d.loc + d.scale * run.noise(tuple(d.loc.shape)).to(d.loc)


# --- bottom-up -----------------------------------------------------------------------------------


def size_at(plan: Plan, i: int) -> tuple[int, int, int]:
    """Channels, height and width of stage i's features."""
    _, *sides = plan.shape
    for stride in (block[2] for blocks in plan.stages[: i + 1] for block in blocks):
        sides = [-(-n // stride) for n in sides]
    return plan.stages[i][-1][0], sides[0], sides[1]


def project(run: Run, i: int, name: str, z: Tensor) -> Tensor:
    """Stage i's latent as features: a convolutional one is that already."""
    if not run.plan.latents[i].dense:
        return z
    size = size_at(run.plan, i)
    return dense(run, f"stages.{i}.{name}.linear", z, math.prod(size)).view(-1, *size)


def chain(run: Run, i: int, name: str, x: Tensor, aux: Tensor | None) -> Tensor:
    """Stage i's inference blocks, which all have the same auxiliary input."""
    for j, block in enumerate(run.plan.stages[i]):
        how = ("plain",) if i == j == 0 else ()
        x = gated(run, f"stages.{i}.{name}.layers.{j}", x, block, aux, *how)
    return x


def infer_biva(run: Run, x: Tensor) -> list[Inferred]:
    plan, skip, inferred = run.plan, None, []
    bu = td = x
    for i, latent in enumerate(plan.latents):
        bu = chain(run, i, "q_bu_convs", bu, None if plan.no_skip else skip)
        td = chain(run, i, "q_td_convs", td, bu)
        skip = torch.cat([bu, td], dim=1)
        if i + 1 < len(plan.latents):
            q = head(run, f"stages.{i}.bu_stochastic.qx2z", bu, latent)
            z = draw(run, q)
            bu = project(run, i, "bu_proj", z)
        else:  # a residual of fewer channels is the first half's
            both = torch.cat([td, bu], dim=1) if run.original(CONCAT) else skip
            h = gated(run, f"stages.{i}.q_top", both, (*plan.stages[i][-1][:2], 1), None)
            q = head(run, f"stages.{i}.stochastic.qx2z", h, latent)
            z = draw(run, q)
        inferred.append(Inferred(td, (q, z)))
    return inferred


def infer(run: Run, x: Tensor) -> list[Inferred]:
    """The bottom-up pass of LVAE and VAE stages."""
    skip, inferred = None, []
    for i, latent in enumerate(run.plan.latents):
        x = chain(run, i, "q_convs", x, None if run.plan.no_skip else skip)
        skip = x
        if run.plan.stage == "LVAE":
            inferred.append(Inferred(x, None))
            continue
        q = head(run, f"stages.{i}.stochastic.qx2z", x, latent)
        z = draw(run, q)
        x = project(run, i, "q_proj", z)  # at the top too, where nothing looks at it
        inferred.append(Inferred(None, (q, z)))
    return inferred


# --- top-down ------------------------------------------------------------------------------------


def prior_of(run: Run, i: int, name: str, d: Tensor | None, batch: int) -> Normal:
    latent = run.plan.latents[i]
    if d is not None:
        return head(run, f"stages.{i}.{name}.px2z", d, latent)
    shape = () if latent.dense else size_at(run.plan, i)[1:]
    both = param(run, f"stages.{i}.{name}.prior", (2 * latent.N, *shape))
    mean, log_var = both.expand(batch, *both.shape).chunk(2, dim=1)
    return normal(mean, log_var)


def merged(run: Run, i: int, features: Tensor, d: Tensor | None) -> Tensor:
    filters, k, _ = run.plan.stages[i][-1]
    if run.plan.stage == "BIVA":
        k = run.plan.stages[i + 1][0][1] if run.original(MERGE) else 3
    return gated(run, f"stages.{i}.merge", features, (filters, k, 1), d)


def latents_of(
    run: Run, i: int, d: Tensor | None, batch: int, found: Inferred
) -> tuple[Tensor, list[Tensor]]:
    """Stage i's latents beside each other, and their divergences, bottom-up one first."""
    biva = run.plan.stage == "BIVA" and d is not None
    td = "td_stochastic" if biva else "stochastic"
    kls: list[Tensor] = []

    def use(p: Normal, drawn: tuple[Normal, Tensor] | None) -> Tensor:
        if drawn is None:
            return draw(run, p)
        q, z = drawn
        kls.insert(0, (q.log_prob(z) - p.log_prob(z)).flatten(1).sum(1))
        return z

    drawn = None if biva else found.drawn
    if found.features is not None and drawn is None:
        h = merged(run, i, found.features, d)
        q = head(run, f"stages.{i}.{td}.qx2z", h, run.plan.latents[i])
        drawn = q, draw(run, q)
    z = use(prior_of(run, i, td, d, batch), drawn)
    if not biva:
        return z, kls
    if run.plan.conditional_bu:
        if run.plan.latents[i].dense:
            raise ValueError("the description does not say how a dense latent becomes features")
        d = gated(run, f"stages.{i}.bu_condition", z, (size_at(run.plan, i)[0], 3, 1), d)
    z_bu = use(prior_of(run, i, "bu_stochastic", d, batch), found.drawn)
    return torch.cat([z, z_bu], dim=1), kls


def generate(run: Run, batch: int, inferred: Sequence[Inferred]) -> tuple[Tensor, list[Tensor]]:
    """From the top to the logits."""
    plan = run.plan
    above: list[Tensor | None] = [None] * len(plan.stages[0])
    d: Tensor | None = None
    kls: list[Tensor] = []
    for i in reversed(range(len(plan.stages))):
        z, own = latents_of(run, i, d, batch, inferred[i])
        kls = own + kls
        h = project(run, i, "z_proj" if plan.stage == "BIVA" else "p_proj", z)
        below: list[Tensor | None] = []
        blocks = zip(reversed(plan.stages[i]), above, strict=True)
        for j, (block, aux) in enumerate(blocks):
            how = ("up", "plain") if j == 0 else ("up",)
            skip = None if plan.no_skip else aux
            h = gated(run, f"stages.{i}.p_convs.layers.{j}", h, block, skip, *how)
            below.append(h)
        d, above = h, below
    assert d is not None
    return conv(run, "projection.1", F.elu(d), plan.features_out, 1), kls


# --- passes --------------------------------------------------------------------------------------


def _forward(run: Run, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    sweep = infer_biva if run.plan.stage == "BIVA" else infer
    return generate(run, x.shape[0], sweep(run, x))


def forward(plan: Plan, state: State, x: Tensor, noise: Noise) -> tuple[Tensor, list[Tensor]]:
    """Logits and the divergences of every image: bu_1, td_1, ..., z_L, from the bottom up."""
    return _forward(Run(plan, state, noise, {}), x)


def shapes(plan: Plan) -> Shapes:
    """Every key of the released state dict and its shape, from a pass without values."""
    run = Run(plan, None, lambda shape: torch.zeros(shape, device="meta"), {})
    _forward(run, torch.zeros(2, *plan.shape, device="meta"))
    return run.shapes
