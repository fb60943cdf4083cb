"""A second, functional implementation of the released NVAE, from its description, in its own
layout: what the library's is compared with."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

State = dict[str, Tensor]
Shapes = dict[str, list[int]]
Names = tuple[str, ...]
Noise = Callable[[tuple[int, ...]], Tensor]

MONO = ("mnist", "omniglot")
RES, RES5 = "res_bnswish", "res_bnswish5"
E3, E6 = ("mconv_e3k5g0",), ("mconv_e6k5g0",)
# Operations of the encoder's, decoder's, pre- and post-processing cells.
ARCHES: dict[str, tuple[Names, ...]] = {
    "res_mbconv": ((RES, RES), E6, (RES, RES), E3),
    "res_bnswish": ((RES, RES),) * 4,
    "mbconv_sep": (E6, E6, E3, E3),
    "mbconv_sep11": (("mconv_e6k11g0",), ("mconv_e6k11g0",), E3, E3),
    "res53_mbconv": ((RES5, RES), E6, (RES5, RES), E3),
    "res35_mbconv": ((RES, RES5), E6, (RES, RES5), E3),
    "res55_mbconv": ((RES5, RES5), E6, (RES5, RES5), E3),
    "mbconv_res": (E6, (RES, RES), E3, (RES, RES)),
    "mbconv_den": (E6, E6, ("mconv_e3k5g8",), ("mconv_e3k5g8",)),
}
# What a convolution has beside its weight; without a norm, the weight under a second name.
NORMED, UNBIASED = ("log_weight_norm", "bias"), ("log_weight_norm",)
PLAIN = ("weight_normalized",)


class Options(NamedTuple):
    dataset: str = "cifar10"
    num_channels_enc: int = 8
    num_channels_dec: int = 8
    num_latent_scales: int = 2
    num_groups_per_scale: int = 2
    ada_groups: bool = False
    min_groups_per_scale: int = 1
    num_latent_per_group: int = 4
    num_preprocess_blocks: int = 1
    num_preprocess_cells: int = 2
    num_postprocess_blocks: int = 1
    num_postprocess_cells: int = 2
    num_cell_per_cond_enc: int = 1
    num_cell_per_cond_dec: int = 1
    num_nf: int = 0
    use_se: bool = True
    res_dist: bool = True
    num_x_bits: int = 8  # of the data and the likelihood: the network does not look at it
    arch_instance: str = "res_mbconv"
    num_mixture_dec: int = 10
    size: int = 32


class Record(NamedTuple):
    logits: Tensor
    kl: list[Tensor]  # of each group, coarse to fine
    log_q: Tensor
    log_p: Tensor
    shapes: Shapes  # of every weight that the pass asked for
    moved: State  # running statistics after a step in training mode


class Run(NamedTuple):
    """One pass over the network, which writes down every weight it asks for."""

    options: Options
    state: State | None  # None where only the shapes are of interest
    train: bool
    shapes: Shapes
    moved: State


def fill(shapes: Shapes) -> State:
    """Weights that anyone can make from the names and shapes alone."""
    state: State = {}
    for key, shape in shapes.items():
        last = key.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        seed = zlib.crc32(key.replace("weight_normalized", "weight").encode())
        v = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        scaled = {"running_mean": 0.1 * v, "running_var": 1 + 0.2 * np.abs(v)}
        scaled |= {"bias": 0.05 * v, "log_weight_norm": -0.5 + 0.1 * v, "prior_ftr0": 0.3 * v}
        weight = 0.7 + 0.07 * v if len(shape) == 1 else v / math.sqrt(math.prod(shape[1:]))
        state[key] = torch.from_numpy(scaled.get(last, weight))
    return state


def noise_from(base: int) -> Noise:
    """The j-th call draws from the seed `base + j`."""
    seeds = iter(range(base, 2**32))

    def draw(shape: tuple[int, ...]) -> Tensor:
        v = np.random.RandomState(next(seeds)).standard_normal(shape)
        return torch.from_numpy(v.astype(np.float32))

    return draw


def scales(o: Options) -> list[int]:
    """Of every group, coarse to fine; 0 is the finest."""
    groups = [o.num_groups_per_scale]
    for _ in range(o.num_latent_scales - 1):
        fewer = max(o.min_groups_per_scale, groups[-1] // 2)
        groups.append(fewer if o.ada_groups else groups[0])
    if groups == [1]:
        raise ValueError("one group in all makes the vanilla model, which has no towers")
    return [s for s in reversed(range(len(groups))) for _ in range(groups[s])]


def param(run: Run, key: str, *shape: int) -> Tensor:
    run.shapes[key] = list(shape)
    if run.state is None:
        return torch.zeros(shape)
    if run.state[key].shape != shape:
        raise ValueError(f"{key} is {list(run.state[key].shape)}, not {list(shape)}")
    return run.state[key]


def mask_of(name: str, weight: Tensor) -> Tensor:
    """What a flow's convolution may see: the pixels and channels before its own."""
    cout, cin, k, _ = weight.shape
    mask = torch.zeros_like(weight)
    mask[:, :, : k // 2] = 1
    mask[:, :, k // 2, : k // 2] = 1
    if name.endswith("convz.2"):  # depthwise
        mask[:, :, k // 2, k // 2] = 1
    else:
        o = torch.arange(cout)[:, None] // max(cout // cin, 1)
        i = torch.arange(cin)[None] // max(cin // cout, 1)
        mask[:, :, k // 2, k // 2] = (i < o if name.endswith("convz.0") else i <= o).to(weight)
    return mask.flip(2, 3) if ".cell2." in name else mask


def effective(name: str, weight: Tensor, log_norm: Tensor | None) -> Tensor:
    if name.startswith("nf_cells."):
        weight = weight * mask_of(name, weight)
    if log_norm is None:
        return weight
    norm: Tensor = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True)
    return log_norm.exp() * weight / (norm + 1e-5)


def conv(
    run: Run, name: str, x: Tensor, cout: int, k: int = 1, also: Names = NORMED, **how: int
) -> Tensor:
    """`how` is conv2d's stride, dilation and groups; the size changes by the stride alone."""
    weight = param(run, f"{name}.weight", cout, x.shape[1] // how.get("groups", 1), k, k)
    bias = param(run, f"{name}.bias", cout) if "bias" in also else None
    log_norm = None
    if "log_weight_norm" in also:
        log_norm = param(run, f"{name}.log_weight_norm", cout, 1, 1, 1)
    if "weight_normalized" in also:
        run.shapes[f"{name}.weight_normalized"] = list(weight.shape)
    padding = how.get("dilation", 1) * (k // 2)
    return F.conv2d(x, effective(name, weight, log_norm), bias, padding=padding, **how)


def batch_norm(run: Run, name: str, x: Tensor) -> Tensor:
    keys = [f"{name}.{key}" for key in ("running_mean", "running_var", "weight", "bias")]
    mean, var, weight, bias = (param(run, key, x.shape[1]) for key in keys)
    run.shapes[f"{name}.num_batches_tracked"] = []
    if run.train:
        mean, var = mean.clone(), var.clone()
        run.moved.update({keys[0]: mean, keys[1]: var})
    return F.batch_norm(x, mean, var, weight, bias, run.train, momentum=0.05, eps=1e-5)


def linear(run: Run, name: str, x: Tensor, out: int) -> Tensor:
    weight = param(run, f"{name}.weight", out, x.shape[1])
    return F.linear(x, weight, param(run, f"{name}.bias", out))


def skip(run: Run, name: str, kind: str, x: Tensor, cout: int) -> Tensor:
    if kind == "normal":
        return x
    if kind == "up":
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return conv(run, f"{name}.1", x, cout, 1, UNBIASED)
    x = F.silu(x)
    shifted = (x, x[:, :, 1:, 1:], x[:, :, :, 1:], x[:, :, 1:])
    parts = [cout // 4] * 3 + [cout - 3 * (cout // 4)]
    convs = [
        conv(run, f"{name}.conv_{i}", y, part, stride=2)
        for i, (y, part) in enumerate(zip(shifted, parts, strict=True), start=1)
    ]
    return torch.cat(convs, dim=1)


def residual(run: Run, name: str, op: str, kind: str, x: Tensor, cout: int) -> Tensor:
    x = F.silu(batch_norm(run, f"{name}.bn_act", x))
    x = F.interpolate(x, scale_factor=2) if kind == "up" else x
    stride, dilation = 2 if kind == "down" else 1, 2 if op == RES5 else 1
    return conv(run, f"{name}.conv_0", x, cout, 3, stride=stride, dilation=dilation)


def bottleneck(run: Run, name: str, op: str, kind: str, x: Tensor, cout: int) -> Tensor:
    expansion, k, groups = (int(number) for number in re.findall(r"\d+", op))
    wide, stride = expansion * x.shape[1], 2 if kind == "down" else 1
    a = 1 if kind == "up" else 0  # slot 0 of an up cell is its upsampler
    x = F.interpolate(x, scale_factor=2) if kind == "up" else x
    x = batch_norm(run, f"{name}.{a}.bn", x)
    for i, size, step, parts in ((a + 1, 1, 1, 1), (a + 2, k, stride, groups or wide)):
        slot = f"{name}.{i}.conv"
        x = conv(run, f"{slot}.0", x, wide, size, PLAIN, stride=step, groups=parts)
        x = F.silu(batch_norm(run, f"{slot}.1", x))
    x = conv(run, f"{name}.{a + 3}", x, cout, 1, PLAIN)
    return batch_norm(run, f"{name}.{a + 4}.bn", x)


def cell(run: Run, name: str, kind: str, ops: Names, x: Tensor) -> Tensor:
    cin = x.shape[1]
    cout = {"normal": cin, "down": 2 * cin, "up": cin // 2}[kind]
    y, change = x, kind
    for i, op in enumerate(ops):
        if op.startswith("mconv"):
            y = bottleneck(run, f"{name}._ops.{i}.conv", op, change, y, cout)
        else:
            y = residual(run, f"{name}._ops.{i}", op, change, y, cout)
        change = "normal"  # only the first changes the size
    if run.options.use_se:
        hidden = F.relu(linear(run, f"{name}.se.se.0", y.mean((2, 3)), max(cout // 16, 4)))
        y = y * linear(run, f"{name}.se.se.2", hidden, cout).sigmoid()[:, :, None, None]
    return skip(run, f"{name}.skip", kind, x, cout) + 0.1 * y


def flow(run: Run, name: str, z: Tensor) -> Tensor:
    """A shift of every element by what is before it, then by what is after it."""
    width, wide = z.shape[1], 6 * z.shape[1]
    for half in (f"{name}.cell1", f"{name}.cell2"):
        y = F.elu(conv(run, f"{half}.conv.convz.0", z, wide, 3, UNBIASED))
        y = F.elu(conv(run, f"{half}.conv.convz.2", y, wide, 5, UNBIASED, groups=wide))
        z = z - conv(run, f"{half}.mu.conv_0", F.elu(y), width)
    return z


def normal(raw: Tensor, temperature: float = 1.0) -> Normal:
    mean, log_sd = (5 * torch.tanh(half / 5) for half in raw.chunk(2, dim=1))
    return Normal(mean, (log_sd.exp() + 0.01) * temperature, validate_args=False)


def prior_of(run: Run, i: int, s: Tensor) -> Tensor:
    """Mean and log sd before their clamps; the top prior's are 0."""
    width = 2 * run.options.num_latent_per_group
    if i == 0:
        return s.new_zeros(s.shape[0], width, *s.shape[2:])
    return conv(run, f"dec_sampler.{i - 1}.1", F.elu(s), width)


def encode(run: Run, x: Tensor) -> list[tuple[str, Tensor]]:
    """Features of every group, coarse to fine, each with the name of its combiner."""
    o, order = run.options, scales(run.options)
    ops, _, ops_pre, _ = ARCHES[o.arch_instance]
    e = conv(run, "stem", 2 * x - 1, o.num_channels_enc, 3)
    block = ["normal"] * (o.num_preprocess_cells - 1) + ["down"]
    for i, kind in enumerate(block * o.num_preprocess_blocks):
        e = cell(run, f"pre_process.{i}", kind, ops_pre, e)
    slots = (f"enc_tower.{i}" for i in itertools.count())
    features: list[tuple[str, Tensor]] = []
    for i in reversed(range(len(order))):
        for _ in range(o.num_cell_per_cond_enc):
            e = cell(run, next(slots), "normal", ops, e)
        if i > 0:  # the coarsest group has nothing above it to combine with
            features.append((f"{next(slots)}.conv", e))
            e = cell(run, next(slots), "down", ops, e) if order[i - 1] > order[i] else e
    return [("", F.elu(conv(run, "enc0.1", F.elu(e), e.shape[1]))), *reversed(features)]


def decode(run: Run, batch: int, draw: Callable[[int, Tensor], Tensor]) -> Tensor:
    """From the learned constant to the logits; `draw` gives group i's latents."""
    o, order = run.options, scales(run.options)
    _, ops, _, ops_post = ARCHES[o.arch_instance]
    mult = 2 ** (o.num_preprocess_blocks + order[0])
    side = o.size // mult
    s = param(run, "prior_ftr0", o.num_channels_dec * mult, side, side).expand(batch, -1, -1, -1)
    slots = (f"dec_tower.{i}" for i in itertools.count())
    for i, scale in enumerate(order):
        if i > 0 and order[i - 1] > scale:
            s = cell(run, next(slots), "up", ops, s)
        for _ in range(o.num_cell_per_cond_dec if i > 0 else 0):
            s = cell(run, next(slots), "normal", ops, s)
        merged = torch.cat([s, draw(i, s)], dim=1)
        s = conv(run, f"{next(slots)}.conv", merged, s.shape[1])
    block = ["up"] + ["normal"] * (o.num_postprocess_cells - 1)
    for i, kind in enumerate(block * o.num_postprocess_blocks):
        s = cell(run, f"post_process.{i}", kind, ops_post, s)
    colour = 6 if o.num_mixture_dec == 1 else 10 * o.num_mixture_dec
    return conv(run, "image_conditional.1", F.elu(s), 1 if o.dataset in MONO else colour, 3)


def forward(
    state: State | None, options: Options, x: Tensor, noise: Noise, *, train: bool = False
) -> Record:
    """One pass over `x` in [0, 1], padded and quantised already."""
    run, o = Run(options, state, train, {}, {}), options
    features = encode(run, x)
    terms: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw(i: int, s: Tensor) -> Tensor:
        prior, (combiner, f) = prior_of(run, i, s), features[i]
        f = f + conv(run, combiner, s, f.shape[1]) if i > 0 else f
        raw = conv(run, f"enc_sampler.{i}", f, 2 * o.num_latent_per_group, 3)
        # The sum of the raw numbers is clamped, not the parts; the top prior's are 0 anyway.
        q, p = normal(raw + prior if o.res_dist else raw), normal(prior)
        z = q.loc + q.scale * noise(q.loc.shape).to(q.loc)
        log_q = q.log_prob(z).sum((1, 2, 3))
        for k in range(o.num_nf):
            z = flow(run, f"nf_cells.{i * o.num_nf + k}", z)
        log_p = p.log_prob(z).sum((1, 2, 3))
        kl = log_q - log_p if o.num_nf else kl_divergence(q, p).sum((1, 2, 3))
        terms.append((kl, log_q, log_p))
        return z

    logits = decode(run, x.shape[0], draw)
    kl, log_q, log_p = (list(group) for group in zip(*terms, strict=True))
    log_qs, log_ps = torch.stack(log_q).sum(0), torch.stack(log_p).sum(0)
    return Record(logits, kl, log_qs, log_ps, run.shapes, run.moved)


def sample(state: State, options: Options, n: int, temperature: float, noise: Noise) -> Tensor:
    """Logits from the prior, with every group's sd times the temperature."""
    run = Run(options, state, False, {}, {})

    def draw(i: int, s: Tensor) -> Tensor:
        p = normal(prior_of(run, i, s), temperature)
        return p.loc + p.scale * noise(p.loc.shape).to(p.loc)

    return decode(run, n, draw)


def layout(options: Options) -> Shapes:
    """Every key of the released state dict and its shape, from a pass over no images."""
    channels = 1 if options.dataset in MONO else 3
    x = torch.zeros(0, channels, options.size, options.size)
    return forward(None, options, x, lambda shape: torch.zeros(shape)).shapes


def matrices(state: State, options: Options) -> list[Tensor]:
    """Effective weights of all convolutions, which the spectral regularisation looks at."""
    names = [
        key.removesuffix(".weight")
        for key, shape in layout(options).items()
        if key.endswith(".weight") and len(shape) == 4
    ]
    return [
        effective(n, state[f"{n}.weight"], state.get(f"{n}.log_weight_norm")).flatten(1)
        for n in names
    ]


def batch_norm_scales(state: State) -> list[Tensor]:
    return [state[k.replace("running_mean", "weight")] for k in state if "running_mean" in k]
