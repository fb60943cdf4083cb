"""Everything that is to be measured on a GPU, as fixed commands of ten minutes or less each.

    python benchmarks/gpu_list.py                                  # prints the commands
    python benchmarks/gpu_list.py --run 3 --released FOLDER        # runs one item
    python benchmarks/gpu_list.py --run all --device cpu --tiny    # a rehearsal, in minutes

Results go to `benchmarks/results`; of a rehearsal to a folder that is thrown away. Item 2, the
table of the Ladder VAE paper, is not here: it is `ladder train` and `ladder evaluate`, hours for
each model. MNIST and `cifar10_subset.npz` are looked for in $LADDER_DATA. Nothing here
needs a network.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).parent


class Item(NamedTuple):
    """A part of the list.

    Attributes:
        about: What it measures.
        words: Script and words on a GPU.
        tiny: What replaces the words in a rehearsal on a CPU.
        released: Whether `--released` belongs to it.
    """

    about: str
    words: str
    tiny: str
    released: bool = False


STEP = "--batch 32 --precision float32 tf32 bfloat16 --samples 0"
FAST = f"{STEP} --mode eager graph --timeout 90"
SLOW = f"{STEP} --mode compiled --timeout 190 --append"  # which is long because it compiles
TINY = "--batch 4 --windows 1 --steps 1 --warmup 0 --sample-batch 2 --samples 0"
TINY_FAST = f"{TINY} --precision float32 bfloat16"
TINY_SLOW = f"{TINY} --mode compiled --backend aot_eager --append"

ITEMS = {
    "1": Item(
        "mnist_2layer: images/s, seconds of 20 epochs, loss; beside the notebook's way",
        "mnist_2layer_modes.py --batch 128 4096 --epochs 20",
        "mnist_2layer_modes.py --batch 128 --epochs 2 --images 256",
    ),
    "3": Item(
        "vdvae_cifar10: steps, sampling, share of the matrix rate, eager and as a CUDA graph",
        f"steps.py step --preset vdvae_cifar10 {FAST}",
        f"steps.py step --preset tiny_vdvae {TINY_FAST}",
        released=True,
    ),
    "3-compiled": Item(
        "vdvae_cifar10: the same, compiled layer by layer",
        f"steps.py step --preset vdvae_cifar10 {SLOW}",
        f"steps.py step --preset tiny_vdvae {TINY_SLOW}",
    ),
    "3-largest": Item(
        "vdvae_cifar10: the largest batch that fits, in each precision",
        "steps.py largest --preset vdvae_cifar10 --precision float32 bfloat16 --least 128",
        "steps.py largest --preset tiny_vdvae --precision float32 bfloat16 --most 2",
    ),
    "4-nvae": Item(
        "nvae_cifar10: the same as 3",
        f"steps.py step --preset nvae_cifar10 {FAST}",
        f"steps.py step --preset tiny_nvae {TINY_FAST}",
    ),
    "4-nvae-compiled": Item(
        "nvae_cifar10: the same, compiled layer by layer",
        f"steps.py step --preset nvae_cifar10 {SLOW}",
        f"steps.py step --preset tiny_nvae {TINY_SLOW}",
    ),
    "4-nvae-largest": Item(
        "nvae_cifar10: the largest batch that fits",
        "steps.py largest --preset nvae_cifar10 --precision float32 bfloat16 --least 32",
        "steps.py largest --preset tiny_nvae --precision float32 bfloat16 --most 2",
    ),
    "4-biva": Item(
        "biva_cifar10: the same as 3",
        f"steps.py step --preset biva_cifar10 {FAST}",
        f"steps.py step --preset tiny_biva {TINY_FAST}",
        released=True,
    ),
    "4-biva-compiled": Item(
        "biva_cifar10: the same, compiled layer by layer",
        f"steps.py step --preset biva_cifar10 {SLOW}",
        f"steps.py step --preset tiny_biva {TINY_SLOW}",
    ),
    "4-biva-largest": Item(
        "biva_cifar10: the largest batch that fits",
        "steps.py largest --preset biva_cifar10 --precision float32 bfloat16 --least 32",
        "steps.py largest --preset tiny_biva --precision float32 bfloat16 --most 2",
    ),
    "5": Item(
        "ladders of 5 to 80 layers: step time, compile time, graphs, memory",
        "depth.py --mode eager compiled graph",
        "depth.py --depths 2 3 4 --windows 1 --steps 1",
    ),
    "6": Item(
        "vdvae_imagenet64 and vdvae_ffhq256: the largest batch with and without recomputing",
        "steps.py largest --preset vdvae_imagenet64 vdvae_ffhq256 --recompute off on "
        "--precision bfloat16 --name vdvae-large --most 1024",
        "steps.py largest --preset tiny_vdvae --recompute off on --most 2 --name vdvae-large",
    ),
    "7": Item(
        "vdvae_cifar10 on a subset of CIFAR-10: bits/dim against wall clock, two precisions",
        "precisions.py vdvae_cifar10 --minutes 4.5",
        "precisions.py tiny_vdvae data=digits --minutes 0.1 --log-every 2",
    ),
}


def check(device: str, released: str | None) -> None:
    """End with a sentence where ten minutes would be for nothing."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("gpu_list.py: no GPU is here; --device cpu --tiny rehearses")
    if released is not None and not Path(released).is_dir():
        sys.exit(f"gpu_list.py: --released: no folder {released}")


def command(name: str, device: str, tiny: bool, released: str | None) -> list[str]:
    """What runs an item.

    Args:
        name: Of the item.
        device: Where.
        tiny: Whether it is a rehearsal.
        released: Folder of released code, if it is there.
    """
    item = ITEMS[name]
    script, *words = shlex.split(item.tiny if tiny else item.words)
    extra = ["--released", released] if item.released and released else []
    return [sys.executable, str(HERE / script), *words, *extra, "--device", device]


def run(names: list[str], arguments: argparse.Namespace) -> int:
    """Do the items one after another; returns how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        away = {"LADDER_BENCHMARK_RESULTS": folder} if arguments.tiny else {}
        for name in names:
            words = command(name, arguments.device, arguments.tiny, arguments.released)
            print(f"== {name}: {ITEMS[name].about}", file=sys.stderr, flush=True)
            begun = time.monotonic()
            code = subprocess.run(words, env={**os.environ, **away}).returncode
            failed += code != 0
            end = f"{time.monotonic() - begun:.0f} s, exit code {code}"
            print(f"== {name}: {end}", file=sys.stderr, flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", nargs="+", default=[], choices=["all", *ITEMS], metavar="ITEM")
    parser.add_argument("--plan", action="store_true", help="print the commands (default)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, results thrown away")
    parser.add_argument("--released", metavar="FOLDER", help="of released code, for 3 and 4-biva")
    arguments = parser.parse_args()
    names = list(ITEMS) if "all" in arguments.run else arguments.run
    if names:
        check(arguments.device, arguments.released)
        sys.exit(min(1, run(names, arguments)))
    for name, item in ITEMS.items():
        words = command(name, arguments.device, arguments.tiny, arguments.released)
        shown = " ".join(["python", f"benchmarks/{Path(words[1]).name}", *words[2:]])
        print(f"{name:<15} {item.about}\n                {shown}")


if __name__ == "__main__":
    main()
