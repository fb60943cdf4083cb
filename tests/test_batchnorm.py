"""Batch norm over processes: two of them must do what torch does with the whole batch in one.

The two processes run this file; what they found they write, and the tests compare.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ladder.batchnorm import BatchNorm1d, BatchNorm2d, alone, processes
from ladder.build import build_model
from ladder.objectives import elbo

SHARES = (3, 5)  # data of each process
STEPS = 3
LONGEST = 120.0  # seconds, after which two processes wait for each other for ever
Values = dict[str, Any]

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


Norm = nn.BatchNorm1d | nn.BatchNorm2d


def new_norm(kind: type[Norm], dtype: torch.dtype) -> Norm:
    """A batch norm whose scales and shifts are not those of the beginning."""
    norm = kind(4, momentum=0.3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1.0, 2.0, 4))
        norm.bias.copy_(torch.linspace(0.5, -0.5, 4))
    return norm


def whole_batches(dtype: torch.dtype, shift: float) -> list[tuple[Tensor, Tensor]]:
    """For each step the data of both processes, and the gradient of their output."""
    generator = torch.Generator().manual_seed(7)
    shape = (STEPS, 2, sum(SHARES), 4, 3, 2)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = torch.tensor([0.1, 1.0, 3.0, 1.0]).view(4, 1, 1)
    # Channels of other means, and data whose mean differs between the processes.
    drift = torch.arange(8.0).view(8, 1, 1, 1)
    data = values[:, 0] * spread + shift * torch.arange(4.0).view(4, 1, 1) + drift
    return [(x.to(dtype), g.to(dtype)) for x, g in zip(data, values[:, 1], strict=True)]


def batches_of(name: str) -> list[tuple[Tensor, Tensor]]:
    """The whole batches of a case; `[B, C]` of the dense one."""
    batches = whole_batches(*KINDS[name])
    return [(x[..., 0, 0], g[..., 0, 0]) for x, g in batches] if name == "dense" else batches


def follow(norm: Norm, batches: list[tuple[Tensor, Tensor]]) -> Values:
    """A few steps in training mode; outputs, gradients, and what the norm remembers."""
    found: Values = {"output": [], "input_gradient": []}
    for x, gradient in batches:
        x = x.clone().requires_grad_()
        y = norm(x)
        y.backward(gradient)
        assert x.grad is not None
        found["output"].append(y.detach())
        found["input_gradient"].append(x.grad)
    found |= {f"{name}_gradient": p.grad for name, p in norm.named_parameters()}
    return found | {name: b.clone() for name, b in norm.named_buffers()}


# --- what each of two processes does ------------------------------------------------------------

KINDS = {
    "float64": (torch.float64, 0.0),
    "float32": (torch.float32, 0.0),
    "far": (torch.float32, 1000.0),  # variances of large numbers
    "bfloat16": (torch.float32, 0.0),  # the data; parameters are float32 under autocast
    "dense": (torch.float64, 0.0),
}


def own(rank: int, values: Tensor) -> Tensor:
    return values.split(SHARES)[rank]


def share(rank: int, name: str) -> Values:
    batches = batches_of(name)
    if name == "bfloat16":
        batches = [(x.bfloat16(), g.bfloat16()) for x, g in batches]
    batches = [(own(rank, x), own(rank, g)) for x, g in batches]
    kind = BatchNorm1d if name == "dense" else BatchNorm2d
    return follow(new_norm(kind, KINDS[name][0]), batches)


def exchanges(rank: int) -> Values:
    """How often the processes speak to each other."""
    count, all_reduce = [0], dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return all_reduce(*args, **kwargs)

    norm = new_norm(BatchNorm2d, torch.float32)
    x = torch.randn(2 + rank, 4, 3, 3, requires_grad=True)
    plain = new_norm(nn.BatchNorm2d, torch.float32)
    dist.all_reduce = counted
    try:
        y = norm(x)
        forward = count[0]
        y.square().sum().backward()
        backward = count[0] - forward
        plain.load_state_dict(norm.state_dict())
        # Only one evaluates: if it waited for the other, it would wait for ever.
        silent = rank == 0 or torch.equal(norm.eval()(x), plain.eval()(x))
        silent &= rank == 0 or trains_alone(norm.train(), plain.train(), x)
        return {"forward": forward, "backward": backward, "all": count[0], "silent": silent}
    finally:
        dist.all_reduce = all_reduce


def trains_alone(norm: Norm, plain: Norm, x: Tensor) -> bool:
    """Whether, in training but alone, it is torch's, and the others count again afterwards."""
    with alone():
        with alone():
            pass
        same = processes() == 1 and torch.equal(norm(x), plain(x))
    buffers = zip(norm.buffers(), plain.buffers(), strict=True)
    return same and all(torch.equal(a, b) for a, b in buffers) and processes() == 2


def gradients(model: nn.Module, x: Tensor, noise: list[Tensor]) -> Values:
    """Gradients of the loss of `x` with given noise, and the model's buffers after it."""
    rest, randn_like = iter(noise), torch.randn_like
    torch.randn_like = lambda like, **_: next(rest).to(like)
    try:
        px, latents = model(x)
    finally:
        torch.randn_like = randn_like
    elbo(px, latents, x).loss.backward()
    assert next(rest, None) is None
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    found = {name: p.grad for name, p in inner.named_parameters()}
    assert None not in found.values()
    return {"gradients": found, "buffers": dict(inner.named_buffers())}


def parallel(rank: int, given: Values) -> Values:
    """A step of half of the batch; before it, not after it, both have the same buffers."""
    model = build_model("tiny_nvae").double()
    model.load_state_dict(given["weights"])
    noise = [values.chunk(2)[rank] for values in given["noise"]]
    return gradients(DistributedDataParallel(model), given["x"].chunk(2)[rank], noise)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    url = (folder / "meet").as_uri()
    timeout = timedelta(seconds=LONGEST / 2)
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2, timeout=timeout)
    try:
        found = {name: share(rank, name) for name in KINDS}
        found["exchanges"] = exchanges(rank)
        found["nvae"] = parallel(rank, torch.load(folder / "given.pt"))
        found["processes"] = processes()
        torch.save(found, folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


# --- what the tests compare ---------------------------------------------------------------------


def nvae() -> tuple[Values, Values]:
    """What two processes are given for a step of a whole model, and what one finds with it."""
    torch.manual_seed(11)
    model = build_model("tiny_nvae").double()
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    weights = {name: v.clone() for name, v in model.state_dict().items()}
    shapes = [(6, 4, 2, 2), (6, 4, 4, 4), (6, 4, 4, 4)]
    noise = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    x[3:] *= 0.3  # the halves differ
    return {"weights": weights, "noise": noise, "x": x}, gradients(model, x, noise)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Values], Values]:
    """What the two processes found, and what one finds for the whole model."""
    folder = tmp_path_factory.mktemp("two")
    given, alone = nvae()
    torch.save(given, folder / "given.pt")
    words = [[sys.executable, __file__, str(rank), str(folder)] for rank in (0, 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(w, stderr=subprocess.PIPE, env=environment) for w in words]
    try:
        errors = [process.communicate(timeout=LONGEST)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], alone


def in_one(name: str) -> Values:
    """What torch finds for the whole batch, in double precision."""
    batches = [(x.double(), g.double()) for x, g in batches_of(name)]
    kind = nn.BatchNorm1d if name == "dense" else nn.BatchNorm2d
    return follow(new_norm(kind, torch.float64), batches)


def pairs(name: str, results: list[Values]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """By name, what two processes found together, and what one did."""
    right = in_one(name)
    for key in ("output", "input_gradient"):
        for step in range(STEPS):
            parts = [result[name][key][step] for result in results]
            yield key, torch.cat(parts), right[key][step]
    for key in ("weight_gradient", "bias_gradient"):
        yield key, results[0][name][key] + results[1][name][key], right[key]
    for result in results:
        for key in ("running_mean", "running_var"):
            yield key, result[name][key], right[key]
        assert result[name]["num_batches_tracked"].item() == STEPS


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("float64", 1e-12), ("float32", 1e-5), ("far", 2e-3), ("bfloat16", 0.05), ("dense", 1e-12)],
)
def test_two_processes_normalise_as_one(
    found: tuple[list[Values], Values], name: str, tolerance: float
) -> None:
    low = torch.bfloat16 if name == "bfloat16" else KINDS[name][0]
    for key, ours, right in pairs(name, found[0]):
        per_datum = key in ("output", "input_gradient")
        assert ours.dtype == (low if per_datum else KINDS[name][0])
        others = [axis for axis in range(right.ndim) if axis != 1]
        size = right.abs().amax(others, keepdim=True) if per_datum else right.abs().max()
        assert ((ours.double() - right).abs() <= tolerance * size).all(), key


def test_running_statistics_are_the_same_in_both(found: tuple[list[Values], Values]) -> None:
    for name in KINDS:
        one, two = (result[name] for result in found[0])
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(one[key], two[key])


def test_a_share_alone_would_give_something_else() -> None:
    """The comparison above can tell synchronised statistics from those of a share."""
    right = in_one("float64")
    batches = [(own(1, x), own(1, g)) for x, g in whole_batches(torch.float64, 0.0)]
    alone = follow(new_norm(nn.BatchNorm2d, torch.float64), batches)
    for key in ("output", "input_gradient"):
        assert (alone[key][0] - own(1, right[key][0])).abs().max() > 1e-2


def test_exchanges_are_few_and_none_in_evaluation(found: tuple[list[Values], Values]) -> None:
    for result in found[0]:
        assert result["processes"] == 2
        assert result["exchanges"] == {"forward": 2, "backward": 2, "all": 4, "silent": True}


def test_a_model_in_two_processes_has_the_gradients_of_the_whole_batch(
    found: tuple[list[Values], Values],
) -> None:
    (one, two), alone = found
    for name, right in alone["gradients"].items():
        ours = one["nvae"]["gradients"][name]
        assert torch.equal(ours, two["nvae"]["gradients"][name]), name
        torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-9, msg=name)


def test_a_model_in_two_processes_remembers_the_statistics_of_the_whole_batch(
    found: tuple[list[Values], Values],
) -> None:
    (one, two), alone = found
    names = [name for name in alone["buffers"] if "running" in name or "tracked" in name]
    assert len(names) > 60
    for name in names:
        ours = one["nvae"]["buffers"][name]
        assert torch.equal(ours, two["nvae"]["buffers"][name]), name
        right = alone["buffers"][name]
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [False, True])
def test_in_one_process_it_is_torch_s(dtype: torch.dtype, dense: bool) -> None:
    assert processes() == 1
    batches = whole_batches(dtype, 10.0)
    kinds: tuple[type[Norm], type[Norm]] = (BatchNorm2d, nn.BatchNorm2d)
    if dense:
        batches = [(x[..., 0, 0], g[..., 0, 0]) for x, g in batches]
        kinds = (BatchNorm1d, nn.BatchNorm1d)
    ours, theirs = (new_norm(kind, dtype) for kind in kinds)
    one, two = follow(ours, batches), follow(theirs, batches)
    assert one.keys() == two.keys()
    for key, ours_found in one.items():
        a, b = (v if isinstance(v, list) else [v] for v in (ours_found, two[key]))
        assert all(map(torch.equal, a, b)), key
    x = batches[0][0]
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
