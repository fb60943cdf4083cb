"""Where and how precisely a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ladder.config import Config, ModelConfig
from ladder.errors import UserError


def choose_device(name: str, local: int | None = None) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` into a device that is there.

    Args:
        name: What the configuration says.
        local: Number of this process on its machine, if several train together: each takes the
            GPU of its number.

    Returns:
        The device.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device: no device '{name}'; try auto, cpu or cuda") from None
    if device.type == "cuda" and local is not None:
        device = torch.device("cuda", local)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device: '{name}' is not there{_of_many(local)}")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # noise is seeded on the current device
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device: '{name}' is not supported; try auto, cpu or cuda")
    return device


def _of_many(local: int | None) -> str:
    if not local:
        return "; try auto or cpu"
    count = torch.cuda.device_count()
    return f" for process {local} of this machine, which has {count}; start one for each GPU"


def memory_format(config: Config[ModelConfig], device: torch.device) -> torch.memory_format:
    """Order in which batches, and weights of convolutions, lie in memory."""
    wish = config.train.channels_last
    if wish is None:
        wish = device.type == "cuda" and config.train.precision == "bfloat16"
    images = len(config.model.shape) == 3
    return torch.channels_last if wish and images else torch.preserve_format


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices as `precision` says inside the block.

    torch's own default is tf32 for convolutions and float32 for products; here each is what it is
    called.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
