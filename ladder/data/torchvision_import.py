"""The only place that imports torchvision, so that a broken one hinders nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import UserError
from .quote import quoted


def torchvision(module: str) -> Any:
    """Import a module of torchvision.

    Args:
        module: Its name below torchvision, such as `"io"`.

    Returns:
        The module.

    Raises:
        UserError: If it cannot be imported, most often because it was built for another torch.
    """
    try:
        return import_module(f"torchvision.{module}")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            "data: the installed torchvision does not match the installed torch "
            f"({quoted(error)}); reinstall both together, "
            "or use data=digits, which needs no torchvision"
        ) from error
