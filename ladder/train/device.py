"""Where and how precisely a run computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    before = tf32_settings()
    allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        _restore(before)


class Settings(NamedTuple):
    """What torch may round to tf32.

    Attributes:
        older: `allow_tf32` of products and of convolutions.
        newer: `fp32_precision` of each of `_parts`.
    """

    older: list[bool]
    newer: list[str]


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round what they multiply to tf32, or forbid it.

    By torch's older and newer settings: it raises where somebody reads the older one and they
    disagree.
    """
    for backend in _backends():
        backend.allow_tf32 = allowed
    for part in _parts():
        part.fp32_precision = "tf32" if allowed else "ieee"


def tf32_settings() -> Settings:
    """What the settings are, also where they disagree."""
    newer = [part.fp32_precision for part in _parts()]
    for part in _parts():
        part.fp32_precision = "tf32"
    older = [_allows(backend) for backend in _backends()]
    settings = Settings(older, newer)
    _restore(settings)
    return settings


def _restore(settings: Settings) -> None:
    for backend, allowed in zip(_backends(), settings.older, strict=True):
        backend.allow_tf32 = allowed
    for part, precision in zip(_parts(), settings.newer, strict=True):
        part.fp32_precision = precision


def _allows(backend: Any) -> bool:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:  # it disagrees with the newer one, which is tf32 now
        return False


def _backends() -> tuple[Any, Any]:
    return torch.backends.cuda.matmul, torch.backends.cudnn


def _parts() -> tuple[Any, ...]:
    """What has the newer setting, the more general first; nothing before torch 2.9."""
    matmul, cudnn = _backends()
    if not hasattr(matmul, "fp32_precision"):
        return ()
    return cudnn, cudnn.conv, cudnn.rnn, matmul


def flush_denormals() -> None:
    """Let this process take numbers below 1e-38 for 0, for good.

    The CPU computes with them many times slower, and after some 700 steps there are many, such as
    averages of gradients that have become 0. To be called before torch has computed anything,
    since its threads are born with the setting.
    """
    torch.set_flush_denormal(True)
