"""What the benchmarks share: `--device`, and where results are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ladder.bench.machine import machine

# A rehearsal keeps nothing (`gpu_list.py --tiny`).
RESULTS = Path(os.environ.get("LADDER_BENCHMARK_RESULTS") or Path(__file__).parent / "results")


PRESETS = ("mnist_2layer", "tiny_lvae_conv", "tiny_vdvae", "tiny_nvae", "tiny_biva")
# Precision and mode; what only a GPU can comes after the first three.
WAYS = (
    ("float32", "eager"),
    ("bfloat16", "eager"),
    ("float32", "compiled"),
    ("tf32", "eager"),
    ("bfloat16", "compiled"),
    ("float32", "graph"),
    ("tf32", "graph"),
    ("bfloat16", "graph"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    # Dynamo looks at `.grad` of what a layer is given.
    config.addinivalue_line("filterwarnings", "ignore:The .grad attribute of a Tensor:UserWarning")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `way` what the device can; nothing is compiled here where nothing is timed."""
    if "way" in metafunc.fixturenames:
        cpu = torch.device(metafunc.config.getoption("--device")).type == "cpu"
        timed = not metafunc.config.getoption("benchmark_disable")
        ways = [way for way in (WAYS[:3] if cpu else WAYS) if timed or way[1] != "compiled"]
        metafunc.parametrize("way", ways, ids="-".join)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """What `--device` names; tests that need it are left out where it is not there."""
    name = str(request.config.getoption("--device"))
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"no {name} here")
    return name


@pytest.fixture(autouse=True)
def fresh() -> None:
    """A seed, and nothing compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """The machine as our other results have it; no host name."""
    machine_info.clear()
    name = str(config.getoption("--device"))
    there = torch.device(name).type == "cpu" or torch.cuda.is_available()
    machine_info.update(machine(name if there else "cpu"))


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Only what the table needs, in the shape of our other results."""
    rows = [
        {
            "name": bench["name"],
            "file": bench["fullname"].split("::")[0],
            "median_seconds": bench["stats"]["median"],
            "iqr_seconds": bench["stats"]["iqr"],
            "rounds": bench["stats"]["rounds"],
            **bench["extra_info"],
        }
        for bench in output_json["benchmarks"]
    ]
    about = output_json["machine_info"]
    output_json.clear()
    output_json.update({"machine": about, "rows": rows})


def write_result(name: str, content: dict[str, Any], device: str = "cpu") -> Path:
    """Write `results/benchmark-<name>-<device>-float32-pt<version>.json`."""
    version = torch.__version__.split("+")[0]
    path = RESULTS / f"benchmark-{name}-{device.split(':')[0]}-float32-pt{version}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(device), **content}, indent=2) + "\n")
    return path
