"""Work that is captured once and replayed, and what of the models may be captured."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladder.build import build_model, list_presets
from ladder.capture import Replay
from ladder.errors import UserError
from ladder.objectives import elbo
from ladder.sampler import Sampler
from ladder.sampling import sample


def test_on_the_cpu_every_call_runs_the_work() -> None:
    total = torch.zeros(())
    replay = Replay(lambda: total.add_(1), "cpu")
    assert [float(replay()) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert replay.graph is None


class Graph:
    """A CUDA graph that remembers what was run while it was captured."""

    def __init__(self) -> None:
        self.work: Any = None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.work()


@pytest.mark.parametrize("warm_ups", [0, 1, 3])
def test_on_a_gpu_every_call_does_the_work_once(
    monkeypatch: pytest.MonkeyPatch, warm_ups: int
) -> None:
    """With stand-ins: the order of calls, not the kernels."""
    events: list[str] = []
    done = torch.zeros(())
    capturing = False

    def work() -> Tensor:
        events.append("capture" if capturing else "run")
        return done if capturing else done.add_(1)

    class Capture:
        def __init__(self, graph: Graph, **_: Any) -> None:
            graph.work = lambda: done.add_(1)

        def __enter__(self) -> None:
            nonlocal capturing
            capturing = True

        def __exit__(self, *_: object) -> None:
            nonlocal capturing
            capturing = False

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "current_stream": lambda: stream,
        "Stream": lambda: stream,
        "CUDAGraph": Graph,
        "graph": Capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replay = Replay(work, "cuda", warm_ups)
    assert [float(replay()) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert events == ["run"] * warm_ups + ["capture"]
    assert replay.graph.replays == 7 - warm_ups  # type: ignore[union-attr]


def test_a_sampler_draws_what_sample_draws() -> None:
    model = build_model(preset="tiny_vdvae").eval()
    sampler = Sampler(model, 3, 0.7)
    before = torch.get_rng_state()
    px, latents = sampler(seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(px.mean, sample(model, 3, 0.7, seed=5).mean)
    assert not px.mean.requires_grad
    assert torch.equal(px.mean, sampler(5)[0].mean)
    assert not torch.equal(px.mean, sampler(6)[0].mean)
    assert list(latents) == [f"z{i}" for i in range(6, 0, -1)]


def test_a_temperature_in_a_tensor_may_change() -> None:
    model = build_model(preset="tiny_vdvae").eval()
    t = torch.tensor(1.0)
    sampler = Sampler(model, 2, t)
    sampler(1)
    t.fill_(0.5)
    assert torch.equal(sampler(1)[0].mean, sample(model, 2, 0.5, seed=1).mean)


def test_a_samplers_mistakes_have_their_sentence() -> None:
    model = build_model(preset="tiny_vdvae")
    with pytest.raises(UserError, match="Sampler: n=0 should be at least 1"):
        Sampler(model, 0)
    with pytest.raises(UserError, match="temperature: -1 should be a finite number"):
        Sampler(model, 2, -1)
    with pytest.raises(UserError, match=r"Sampler: n=2\.5 should be a whole number"):
        Sampler(model, 2.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Sampler: the model is in training mode"):
        Sampler(model.train(), 2)


class Devices(TorchDispatchMode):
    """Devices of the tensors of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, Tensor)]
        self.seen.setdefault(str(func), set()).update(v.device.type for v in tensors)
        return result


CAPTURED = [*list_presets("tiny_*"), "mnist_2layer"]


@pytest.mark.parametrize("preset", CAPTURED)
@torch.no_grad()
def test_neither_pass_nor_loss_leaves_the_gpu(preset: str) -> None:
    """With tensors that have a device but no values: what asks for a value raises."""
    with FakeTensorMode(), torch.device("cuda"):
        model = build_model(preset=preset).eval()
        x = torch.rand(2, *model.shape)
        with Devices() as devices:
            loss = elbo(*model(x), x).loss
            px = model.decode(4, temperature={"z1": 0.8})[0]
        assert px.mean.device.type == loss.device.type == "cuda"
    assert set().union(*devices.seen.values()) == {"cuda"}


def test_a_value_that_is_asked_for_would_raise() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones((), device="cuda").item()
