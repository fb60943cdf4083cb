"""The presets: one YAML file each. Reading their names needs neither torch nor pydantic."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib.resources import files

from ladder.errors import UserError, suggest


def list_presets(pattern: str = "*") -> list[str]:
    """Names of the presets that match a shell pattern, in natural order.

    Args:
        pattern: Such as `"*mnist*"`.

    Returns:
        The names.
    """
    names = [f.name.removesuffix(".yaml") for f in files(__name__).iterdir()]
    names = [n for n in names if "." not in n and not n.startswith("_") and fnmatch(n, pattern)]
    return sorted(
        names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]
    )


def preset_text(name: str) -> str:
    """The YAML of a preset.

    Args:
        name: One of `list_presets()`.

    Returns:
        The file's text.

    Raises:
        UserError: If there is no such preset; it names the nearest.
    """
    names = list_presets()
    if name not in names:
        raise UserError(f"no preset '{name}'{suggest(name, names)}")
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def headline(name: str) -> str:
    """The first comment line of a preset's file: what it is, in one line."""
    return preset_text(name).splitlines()[0].removeprefix("#").strip()
