"""`ladder bench`: what it counts is true, and what cannot run says so in a sentence."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ladder import cli
from ladder.bench import child
from ladder.bench.case import Case, checked, images
from ladder.bench.child import in_a_process
from ladder.bench.largest import largest, search
from ladder.bench.machine import machine
from ladder.bench.measure import How, flops_per_datum, measure
from ladder.bench.memory import GIB, peak_gib
from ladder.bench.table import cell, environment, markdown, text
from ladder.bench.trainee import trainee
from ladder.build import build_model
from ladder.errors import UserError
from ladder.execution import called_layers
from ladder.train import step

TINY = Case("tiny_vdvae", [], batch=8)
QUICK = How(windows=3, steps=1, warmup=1, sample_batch=2, samples=2)


def test_the_verb_prints_a_table_and_writes_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    words = ["bench", "tiny_vdvae", "model.width=8", "--batch", "4", "--quick", "--out", str(out)]
    assert cli.main(words) == 0
    printed, told = capsys.readouterr()
    record = json.loads(out.read_text())
    (row,) = record["runs"]
    assert printed.splitlines()[0] == environment(record["machine"])
    assert printed.splitlines()[1].startswith("with model.width=8, device cpu, precision float32")
    assert "tiny_vdvae" in printed.splitlines()[3]
    assert told == f"tiny_vdvae, batch 4, float32, eager: {cell(row['images_per_s'])} images/s\n"
    assert row["batch"] == 4
    assert row["parameters"] == sum(
        p.numel() for p in build_model("tiny_vdvae", width=8).parameters()
    )
    assert len(row["seconds"]) == 2
    assert row["images_per_s"] == 4 / statistics.median(row["seconds"])
    assert row["steps"] == 1 + 3 + 2
    rate = row["share_of_matrix_rate"] * row["best_matrix_rate_gflops"] * 1e9
    assert rate * row["seconds_per_step"] == pytest.approx(row["tflops_per_step"] * 1e12)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tiny_vdva"], "'tiny_vdva' is neither a preset nor a YAML file; did you mean"),
        (["tiny_nvae", "--batch", "0"], "bench: --batch: 0 should be at least 1"),
        (["tiny_nvae", "--precision", "tf32"], "bench: --precision: tf32 is a GPU's"),
        (["tiny_nvae", "--mode", "graph"], "bench: --mode: graph is a GPU's"),
        (["tiny_nvae", "--mode", "graf"], "ladder bench: argument --mode: invalid choice: 'graf'"),
        (["tiny_nvae", "--device", "tpu"], "bench: --device: no device 'tpu'"),
        (["tiny_nvae", "--device", "cuda:99"], "bench: --device: 'cuda:99' is not there"),
        (["tiny_nvae", "--windows", "0"], "bench: --windows: 0 should be at least 1"),
        (["tiny_nvae", "train.lrr=1"], "train: no field 'lrr'; did you mean 'lr'?"),
        (["tiny_nvae", "train.precision=bfloat16"], "bench: train.precision: give --precision"),
        (["tiny_nvae", "data=digits"], "bench: data: give nothing; the data are random"),
        (["tiny_nvae", "--out", "rows.txt"], "bench: --out: rows.txt should be a .json file"),
    ],
)
def test_what_cannot_run(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *words]) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith(f"ladder: {sentence}")
    assert told.count("\n") == 1


def test_a_case_takes_the_device_that_is_there() -> None:
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert checked(TINY._replace(device="auto")).device == there
    with pytest.raises(UserError, match="--batch: -1"):
        checked(TINY._replace(batch=-1))


def test_operations_of_dense_networks_are_those_of_their_matrices() -> None:
    model = build_model("mnist_2layer")
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    # Forward once, backward twice, but for the gradient of the data, which nobody asks for.
    assert flops_per_datum(Case("mnist_2layer", [], 1)) == 6 * weights - 2 * 784 * 256


# Dynamo looks at `.grad` of what a layer is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_what_is_compiled_is_counted() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    case = Case("mnist_2layer", [], 2, mode="compiled", backend="eager")
    how = QUICK._replace(sample_batch=0, samples=0)
    found = measure(case, how, trainee)
    assert 0 < found["graphs"] <= len(called_layers(build_model("mnist_2layer")))
    assert found["graph_breaks"] == 0
    assert found["steps"] == 1 + 1 + 3


def test_a_graph_is_not_counted_as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    case, how = (
        Case("mnist_2layer", [], 2, mode="graph"),
        QUICK._replace(sample_batch=0, samples=0),
    )
    found = measure(case, how, trainee)
    assert {found[n] for n in ("compile_seconds", "graphs", "graph_breaks")} == {None}
    # What lies in a graph's pool is reserved, but not allocated again when it is replayed.
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GIB)
    assert [peak_gib("cuda"), peak_gib("cuda", graph=True)] == [1, 3]


def test_samples_latents_and_bounds() -> None:
    ready, x = trainee(TINY), images(TINY, 8)
    ready.step(x)
    assert ready.encode is not None
    assert ready.bound is not None
    assert ready.sample(3).shape == (3, 1, 8, 8)
    assert list(ready.encode(x)) == [f"z{i}" for i in range(6, 0, -1)]
    bound = ready.bound(x, 5)
    assert bound.shape == (8,)
    assert not bound.requires_grad
    assert ready.counts() == {"steps": 1, "left_out": 0, "training_failed": False}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("raise SystemExit(75)", "over the limit of memory"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9; out of memory?"),
        ("import time; time.sleep(60)", "not done after 1 s"),
        ("print('...'); print('{\"failed\": \"out of memory\"}')", "out of memory"),
    ],
)
def test_a_failure_is_a_row(code: str, reason: str) -> None:
    timeout = 1.0 if "sleep" in code else None
    row = in_a_process("step", TINY, QUICK, timeout, [sys.executable, "-c", code])
    assert row == {**TINY._asdict(), "failed": reason}


def test_a_child_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    case = TINY._replace(preset="tiny_vdva")
    child.main(words=[json.dumps(w) for w in ("step", case._asdict(), QUICK._asdict())])
    assert "neither a preset" in json.loads(capsys.readouterr().out)["failed"]


@pytest.mark.parametrize("true", [0, 1, 5, 37, 64])
@pytest.mark.parametrize("least", [1, 16])
def test_the_largest_batch_is_found(true: int, least: int) -> None:
    found, peaks = search(lambda n: float(n) if n <= true else None, 64, least)
    assert true - true // 16 <= found <= true
    assert len(peaks) < 14


def test_the_largest_batch_is_at_most_what_was_said() -> None:
    found = largest(TINY, QUICK._replace(most=4), trainee)
    assert found["largest_batch"] == 4
    assert list(found["peak_memory_gib_at"]) == [1, 2, 4]


def test_a_batch_that_only_fits_in_parts_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step.forward_terms

    def short_of_memory(model: nn.Module, x: Tensor, *rest: Any) -> Any:
        if x.shape[0] > 3:
            raise torch.OutOfMemoryError("out of memory")
        return whole(model, x, *rest)

    monkeypatch.setattr(step, "forward_terms", short_of_memory)
    found = largest(TINY, QUICK._replace(most=8), trainee)
    assert found["largest_batch"] == 3
    assert found["peak_memory_gib_at"][4] is None


def test_tables() -> None:
    rows = [
        {"preset": "a", "batch": 2, "device": "cpu", "images_per_s": 1234.5, "mode": "eager"},
        {"preset": "long", "batch": 16, "device": "cpu", "failed": "out of memory", "mode": "x"},
    ]
    assert markdown(rows).splitlines() == [
        "| preset | batch | device | mode | images/s | failed |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 2 | cpu | eager | 1234 |  |",
        "| long | 16 | cpu | x |  | out of memory |",
    ]
    assert text(rows).splitlines() == [
        "device cpu",
        "preset  batch  mode   images/s  failed",
        "a           2  eager      1234",
        "long       16  x                out of memory",
    ]


def test_the_machine_has_no_name() -> None:
    about = machine()
    assert {"cpu", "threads", "python", "torch"} == set(about)
    assert not platform.node() or platform.node() not in json.dumps(about)
