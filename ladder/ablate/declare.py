"""What is ablated: a base configuration, and values for some of its keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field

from ladder.config import Count, Settings
from ladder.errors import UserError
from ladder.parse import check, read_yaml
from ladder.presets import list_presets

SEED = "train.seed"  # the axis of replicates: rows are means over it


class AblationFile(Settings):
    """A file of `ladder ablate`."""

    base: Any
    """A preset, a YAML file beside this one, or a configuration that may itself say `preset:`."""
    overrides: Annotated[list[str], Field(default_factory=list)]
    """Words `key=value` laid over the base in every cell."""
    vary: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Values by dotted key, such as `model.inference`: a list of values, or a mapping from names
    to values where those are long."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Importance samples K of the bound; 0 measures only the ELBO."""
    n: Count | None = None
    """Test data for the importance-weighted bound; null takes all."""


class Axis(NamedTuple):
    """A key and what it is set to.

    Attributes:
        key: Dotted, such as `model.inference`.
        values: Value by its label.
    """

    key: str
    values: dict[str, Any]


class Ablation(NamedTuple):
    """A whole ablation.

    Attributes:
        title: Name of its file or preset, for folders and headings.
        base: What `ladder.resolve` takes: preset, file or mapping.
        overrides: Words `key=value` laid over the base in every cell.
        axes: What is varied, the first one slowest.
        samples: Importance samples K; 0 measures only the ELBO.
        n: Test data for the importance-weighted bound; `None` takes all.
    """

    title: str
    base: str | Path | dict[str, Any]
    overrides: list[str]
    axes: list[Axis]
    samples: int
    n: int | None


def declare(
    source: str | Path | Mapping[str, Any],
    vary: Mapping[str, Any],
    overrides: Sequence[str] = (),
    samples: int | None = None,
    n: int | None = None,
) -> Ablation:
    """Read what is to be ablated.

    Args:
        source: An ablation file or a mapping like its content; or the base itself: a preset, a
            configuration file or a mapping like its content.
        vary: Values by dotted key, laid over those of the file.
        overrides: Words `key=value` for every cell.
        samples: Instead of the file's.
        n: Instead of the file's.

    Returns:
        The ablation.

    Raises:
        UserError: If the file is not one, or nothing varies, or a value is there twice.
    """
    file, where = _file(source)
    both = {**file.vary, **vary}
    if not both:
        raise UserError(f"{where}nothing varies; give --vary key=a,b or a file with 'vary:'")
    words = [*file.overrides, *overrides]
    for word in words:
        if word.partition("=")[0] in both:
            raise UserError(f"'{word}': this key is varied; give its values with --vary {word}")
    if (samples is not None and samples < 0) or (n is not None and n < 1):
        raise UserError("ablate: --samples must be at least 0 and --n at least 1")
    axes = [_axis(key, given, where) for key, given in both.items()]
    title = "ablation" if isinstance(source, Mapping) else Path(source).stem
    return Ablation(
        title,
        _base(file.base, source, where),
        words,
        axes,
        file.samples if samples is None else samples,
        file.n if n is None else n,
    )


def vary_words(words: Sequence[str]) -> dict[str, list[Any]]:
    """Read `key=a,b` words of a command line; each value is YAML, so lists keep their brackets."""
    axes = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"--vary '{word}': write key=a,b, such as train.seed=0,1,2")
        axes[key] = read_yaml(f"values: [{text}]", f"--vary '{word}'")["values"]
    return axes


def _file(source: str | Path | Mapping[str, Any]) -> tuple[AblationFile, str]:
    """The file, and the prefix of sentences about it; a mere base varies nothing."""
    if isinstance(source, Mapping):
        raw, where = dict(source), ""
    elif str(source) in list_presets() or not Path(source).is_file():
        return AblationFile(base=str(source), overrides=[], vary={}), ""
    else:
        where = str(source)
        try:
            raw = read_yaml(Path(source).read_text(encoding="utf-8"), where)
        except UnicodeDecodeError:
            raise UserError(f"{where}: not a text file; an ablation is YAML") from None
    prefix = f"{where}: " if where else ""
    if not {"base", "vary"} & raw.keys():
        return AblationFile(base=Path(where) if where else raw, overrides=[], vary={}), prefix
    return check(AblationFile, raw, where), prefix


def _base(
    base: Any, source: str | Path | Mapping[str, Any], where: str
) -> str | Path | dict[str, Any]:
    if isinstance(base, Mapping):
        return dict(base)
    if isinstance(base, Path):
        return base
    if not isinstance(base, str):
        raise UserError(f"{where}base: should be a preset, a file or a mapping, not {base!r}")
    beside = Path() if isinstance(source, Mapping) else Path(source).parent
    if base in list_presets() or not (beside / base).is_file():
        return base
    return beside / base


def _axis(key: str, given: Any, where: str) -> Axis:
    name = f"{where}vary.{key}"
    if isinstance(given, Mapping):
        pairs = [(str(label), value) for label, value in given.items()]
    elif isinstance(given, list | tuple):
        pairs = [(_label(value), value) for value in given]
    else:
        raise UserError(f"{name}: should be a list of values, or names with values, not {given!r}")
    if not pairs:
        raise UserError(f"{name}: needs at least one value")
    labels = [label for label, _ in pairs]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"{name}: the value {label} is given twice")
    return Axis(key, dict(pairs))


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
        return text.strip()
    return json.dumps(value)
