"""What a training step may ask of the device, and that its shards add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladder.build import resolve
from ladder.config import Config
from ladder.errors import UserError, WorkFailed
from ladder.train import state as states
from ladder.train import step
from ladder.train.checkpoint import set_moments
from ladder.train.feed import Setup, batches, set_up
from ladder.train.loop import fit
from ladder.train.replayed import Replayed, wants_graph
from ladder.train.state import State, new_state
from ladder.train.step import train_step

CPU, META = torch.device("cpu"), torch.device("meta")
EVERYTHING = [
    "train.ema=0.9",
    "train.grad_clip=1",
    "train.grad_clip_value=0.5",
    "train.skip_relative=10",
    "train.warmup_steps=3",
    "objective.layers.z1.kl_target=4",
    "objective.kl_annealing={kind: linear, steps: 10}",
    "objective.balance={by: scale, steps: 5}",
    "objective.free_bits={nats: 0.5, per: channel}",
    "data.binarize=dynamic",
]
SYSTEMS: dict[str, list[str]] = {
    "mnist_2layer": [],
    "lvae_mnist_3layer": ["train.grad_clip=1"],
    "tiny_lvae_conv": [],
    "tiny_vdvae": ["train.optimizer=adamw", "data.flip=true", "objective.per=dimension"],
    "tiny_nvae": ["objective.penalties={spectral: 0.1, batch_norm: 0.1}"],
    "tiny_biva": ["train.optimizer=adamax"],
}


class Words(TorchDispatchMode):
    """Counts operations that are not on the device alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        fused = "_fused_adam" in str(function)  # has no kernel for tensors without values
        result = None if fused else function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if {t.device.type for t in tensors} - {"meta"}:
            self.found[str(function)] += 1
        return result


@pytest.fixture
def fused_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused optimisers refuse the meta device although their kernels know it."""
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)


def words_of(config: Config[Any]) -> Counter[str]:
    """What a step says to or hears from the host, on a device that has no values to tell."""
    state = new_state(config, META, total=10)
    x = torch.rand(4, *config.model.shape, device=META)
    with Words() as words:
        train_step(state, x, config)  # makes what the optimiser and the meter keep
        words.found.clear()
        train_step(state, x, config)
    return words.found


@pytest.mark.usefixtures("fused_on_meta")
@pytest.mark.parametrize("extra", [[], EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_does_not_wait_for_the_device(name: str, extra: list[str]) -> None:
    """A device without values: to read one fails, and tensors of the host are counted."""
    words = extra if name == "mnist_2layer" or not extra else EVERYTHING[:4]
    assert words_of(resolve(name, [*SYSTEMS[name], *words])) == Counter()


@pytest.mark.usefixtures("fused_on_meta")
def test_a_word_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, config = step.metrics, resolve("mnist_2layer")

    def reading(terms: Any) -> dict[str, Tensor]:
        return {**whole(terms), "read": torch.tensor(terms.loss.item())}

    def sending(terms: Any) -> dict[str, Tensor]:
        return {**whole(terms), "sent": torch.tensor(1.0) * terms.loss}

    monkeypatch.setattr(step, "metrics", reading)
    with pytest.raises(RuntimeError, match="meta"):
        words_of(config)
    monkeypatch.setattr(step, "metrics", sending)
    assert words_of(config)["aten.mul.Tensor"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_gpu_is_not_waited_for(name: str) -> None:
    config, device = resolve(name, SYSTEMS[name]), torch.device("cuda", 0)
    state = new_state(config, device, total=10)
    x = torch.rand(4, *config.model.shape, device=device)
    train_step(state, x, config)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, x, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_rate_on_a_device_survives_resuming() -> None:
    """The optimiser must go on reading the tensor that `begin` writes."""
    config = resolve("tiny_nvae")
    state = new_state(config, META, total=10)
    train_step(state, torch.rand(2, *config.model.shape, device=META), config)
    set_moments(state, state.optimizer.state_dict()["state"])
    assert state.optimizer.param_groups[0]["lr"] is state.rate
    assert new_state(config, CPU, total=10).rate is None


# --- shards --------------------------------------------------------------------------------------


def digits(*words: str) -> Config[Any]:
    own = ["data=digits", "train.device=cpu", "train.steps=13", "train.batch_size=150"]
    return resolve("mnist_2layer", [*own, *words])


def trained(config: Config[Any], x: Tensor, steps: int = 3) -> State:
    state = new_state(config, CPU)
    for _ in range(steps):
        train_step(state, x, config)
    return state


@pytest.mark.parametrize("per", ["datum", "dimension"])
def test_shards_add_up_to_the_batch(monkeypatch: pytest.MonkeyPatch, per: str) -> None:
    """Without noise, in which they differ: weights, metrics and norms, of unequal shards."""
    monkeypatch.setattr(torch, "randn_like", lambda like, **_: torch.zeros_like(like))
    x, words = torch.rand(10, 1, 28, 28), [f"objective.per={per}", "train.grad_clip=5"]
    whole, cut = (trained(digits(*words, f"train.accumulate={n}"), x) for n in (1, 3))
    for a, b in zip(whole.parameters, cut.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert whole.meter.read() == pytest.approx(cut.meter.read(), rel=1e-4)
    assert whole.meter.data == cut.meter.data == 30


def test_noise_is_a_shard_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of (seed, step, shard): no two shards share it, and a step has it again."""
    drawn: list[Tensor] = []
    whole = torch.randn_like

    def noted(like: Tensor, **rest: Any) -> Tensor:
        drawn.append(whole(like, **rest))
        return drawn[-1]

    config, x = digits("train.accumulate=3"), torch.rand(6, 1, 28, 28)
    state = new_state(config, CPU)
    monkeypatch.setattr(torch, "randn_like", noted)
    train_step(state, x, config)
    first, state.step = list(drawn), 0
    drawn.clear()
    train_step(state, x, config)
    assert len(first) == 6  # two latents of three shards
    assert all(torch.equal(a, b) for a, b in zip(first, drawn, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[2::2])


def small_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let more data than `most` at once not fit."""
    whole = step.forward_terms

    def forward_terms(model: Any, x: Tensor, *rest: Any) -> Any:
        terms = whole(model, x, *rest)
        if x.shape[0] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return terms

    monkeypatch.setattr(step, "forward_terms", forward_terms)


def test_when_memory_runs_out_shards_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the step is the one of a run that was told to take so many."""
    x = torch.rand(16, 1, 28, 28)
    told = trained(digits("train.accumulate=4", "train.ema=0.9"), x)
    small_memory(monkeypatch, 5)
    found = trained(digits("train.ema=0.9"), x)
    assert found.accumulate == 4
    assert all(torch.equal(a, b) for a, b in zip(told.weights, found.weights, strict=True))
    assert told.meter.read() == found.meter.read()


def test_a_datum_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trained(digits(), torch.rand(3, 1, 28, 28))


def test_other_errors_are_not_for_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "forward_terms", broken)
    state = new_state(digits(), CPU)
    with pytest.raises(RuntimeError, match="mat1"):
        train_step(state, torch.rand(4, 1, 28, 28), digits())
    assert state.accumulate == 1


def test_a_run_says_that_memory_ran_out_and_resumes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_memory(monkeypatch, 80)
    fit(digits(), tmp_path / "whole")
    assert capsys.readouterr().err.count("memory ran out") == 1
    fit(digits("train.steps=6"), tmp_path / "run", quiet=True)
    fit(digits(), tmp_path / "run", quiet=True, resume=True)
    whole, parts = (
        (tmp_path / name / "checkpoints/step-00000013/model.safetensors").read_bytes()
        for name in ("whole", "run")
    )
    assert whole == parts


# --- a step as one graph -------------------------------------------------------------------------


def steps_of(setup: Setup, state: State) -> Iterator[None]:
    """Steps as a loop without graphs takes them."""
    for x in batches(setup, 0):
        train_step(state, x, setup.config)
        yield


def test_replayed_steps_are_the_same_steps() -> None:
    """On the CPU nothing is captured, but batches and metrics go the same way."""
    config = digits(*EVERYTHING)
    setup = set_up(config, Path("unused"))
    assert len(setup.images) % 150
    plain, graphed = (new_state(config, CPU) for _ in range(2))
    replayed = Replayed(setup, graphed)
    for _ in islice(steps_of(setup, plain), 12):
        replayed()
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, graphed.weights, strict=True))
    assert plain.meter.read() == graphed.meter.read()
    assert plain.meter.data == graphed.meter.data
    assert plain.step == graphed.step == 12


def test_a_graph_where_there_can_be_none_is_refused() -> None:
    config = digits("train.cuda_graph=true")
    with pytest.raises(UserError, match=r"train\.cuda_graph: needs a GPU"):
        wants_graph(set_up(config, Path("unused")), new_state(config, CPU))
    config = digits()
    assert not wants_graph(set_up(config, Path("unused")), new_state(config, CPU))


@pytest.mark.parametrize(
    ("words", "device", "total", "compiled"),
    [
        ([], "cpu", 10**6, False),
        (["train.compile=layers"], "cpu", 10, True),
        (["model.width=512"], "cuda", 10**6, True),
        (["model.width=512"], "cuda", 100, False),
        ([], "cuda", 10**6, False),  # small: captured instead
        (["model.width=512", "train.compile=none"], "cuda", 10**6, False),
    ],
)
def test_layers_are_compiled_where_it_pays(
    words: list[str], device: str, total: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "has_triton", lambda: True)
    config = resolve("tiny_vdvae", words)
    with META:
        model = states.build_model(config=config)
    assert states._compiles(model, config, torch.device(device), total) is compiled
    monkeypatch.setattr(states, "has_triton", lambda: False)  # nothing to compile with
    wished = config.train.compile == "layers"
    assert states._compiles(model, config, torch.device(device), total) is wished


def test_memory_that_runs_out_leaves_statistics_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batch norm of a pass that did not fit has followed its data already."""
    config = resolve("lvae_mnist_3layer", ["data=digits", "train.device=cpu"])
    x = torch.rand(16, 1, 28, 28)
    told = new_state(resolve("lvae_mnist_3layer", ["data=digits", "train.accumulate=4"]), CPU)
    train_step(told, x, config)
    small_memory(monkeypatch, 5)
    found = new_state(config, CPU)
    train_step(found, x, config)
    assert found.accumulate == 4
    for a, b in zip(told.model.buffers(), found.model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_without_memory_for_a_graph_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = digits(), list[str]()
    setup, state = set_up(config, Path("unused")), new_state(config, CPU)
    replayed = Replayed(setup, state, told.append)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee documentation")

    full.graph = None  # type: ignore[attr-defined]
    monkeypatch.setattr(replayed, "replay", full)
    replayed()
    plain = new_state(config, CPU)
    train_step(plain, next(batches(setup, 0)), config)
    assert replayed.replay is None
    assert told == [
        "train.cuda_graph: a step of this model could not be captured (CUDA out of memory); "
        "give false"
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, state.weights, strict=True))
    assert (state.step, state.meter.data) == (1, 150)


def test_what_cannot_be_captured_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = digits("train.cuda_graph=true"), list[str]()
    setup = set_up(config, Path("unused"))
    replayed = Replayed(setup, new_state(config, CPU), told.append)

    def waiting() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    waiting.graph = None  # type: ignore[attr-defined]
    monkeypatch.setattr(replayed, "replay", waiting)
    with pytest.raises(WorkFailed, match=r"train\.cuda_graph: .* could not be captured"):
        replayed()
    unasked = Replayed(setup._replace(config=digits()), new_state(config, CPU), told.append)
    monkeypatch.setattr(unasked, "replay", waiting)
    unasked()  # goes on without
    assert unasked.state.step == len(told) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.precision=tf32"], r"train\.precision: tf32 is a GPU's"),
        (["train.compile=model", "train.accumulate=2"], r"train\.compile: model is for one"),
        (["train.compile=model", "train.recompute=true"], r"train\.compile: model is for one"),
    ],
)
def test_settings_that_exclude_each_other(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        new_state(digits(*words), CPU)


@pytest.mark.slow
def test_compiled_as_a_whole_a_step_is_the_same_step() -> None:
    """Its noise too; the last batch, which is smaller, is not compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (new_state(digits(f"train.compile={how}"), CPU) for how in ("none", "model"))
    for n in (150, 150, 97):
        x = torch.rand(n, 1, 28, 28)
        for state, how in ((plain, "none"), (compiled, "model")):
            train_step(state, x, digits(f"train.compile={how}"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled.meter.read() == pytest.approx(plain.meter.read(), rel=1e-3)
