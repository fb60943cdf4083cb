"""From YAML text and `key=value` words to a checked configuration, every mistake a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ladder.errors import UserError, suggest

Raw = dict[str, Any]
Section = TypeVar("Section", bound=BaseModel)

# Saying how long to train drops whatever an earlier source said about it.
LENGTHS, LENGTH_FIELDS = {"epochs", "steps"}, {"epochs", "steps", "min_steps"}
# A mapping with another value of one of these is another thing: it replaces, it does not merge.
DISCRIMINATORS = ("system", "kind")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars, and no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key should be a word"
            elif key.value in seen:
                problem = f"key '{key.value}' is given twice"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), _first
    )


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


# YAML 1.1 would read 012 as octal.
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


class _Dumper(yaml.SafeDumper):
    """Block mappings, and lists of plain values on one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    flow = not any(isinstance(v, dict | list) for v in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Quote whatever any YAML reader, old or new, would take for another type.
    plain = all(_scalar(value, loader) == value for loader in (_Loader, yaml.SafeLoader))
    style = None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_str)


# What PyYAML raises; the last three for a tag such as `!!int x`.
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, AttributeError, TypeError)


def _scalar(text: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except YAML_ERRORS:
        return None


def read_yaml(text: str, where: str) -> Raw:
    """Parse one YAML mapping.

    Args:
        text: The YAML text.
        where: Name of the file, for the sentence.

    Returns:
        The mapping, not yet checked.

    Raises:
        UserError: If it is not YAML, not a mapping, empty, or has a key twice.
    """
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}: line {line}: not valid YAML: {error.problem}") from None
    except YAML_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {reason}") from None
    if raw is None:
        raise UserError(f"{where}: the file is empty; it needs at least 'preset: mnist_2layer'")
    if not isinstance(raw, dict):
        raise UserError(
            f"{where}: not a configuration but {_kind(raw)}; it needs keys such as 'preset:'"
        )
    return normalise(raw)


def normalise(raw: Mapping[str, Any]) -> Raw:
    """Spell out the one shorthand: `data: NAME` is `data: {name: NAME}`."""
    raw = dict(raw)
    if isinstance(raw.get("data"), str):
        raw["data"] = {"name": raw["data"]}
    return raw


def merge(base: Any, over: Any) -> Any:
    """Lay `over` on `base`: mappings merge key by key, everything else replaces.

    What `over` says about the length of training drops whatever `base` says about it.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        base = _without_length(base, over)
    return _merge(base, over)


def _without_length(base: Mapping[str, Any], over: Mapping[str, Any]) -> Mapping[str, Any]:
    before, after = base.get("train"), over.get("train")
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return base
    if all(after.get(key) is None for key in LENGTHS):
        return base
    return {**base, "train": {k: v for k, v in before.items() if k not in LENGTH_FIELDS}}


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, str) and isinstance(over, Mapping):
        base = {"kind": base}  # which a bare word is short for
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    if any(k in over and k in base and over[k] != base[k] for k in DISCRIMINATORS):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if key in merged else value
    return merged


def apply_override(raw: Raw, word: str) -> Raw:
    """Lay one `key=value` word of a command line on a raw configuration.

    Args:
        raw: The configuration so far.
        word: Such as `train.lr=1e-3`, `model.layers[0].dim=64` or `data=digits`.

    Returns:
        The configuration with the value in its place.

    Raises:
        UserError: If the word has no `=`, or names a list item that does not exist.
    """
    key, equals, text = word.partition("=")
    path = [int(p) if p.isdigit() else p for p in re.findall(r"[^.\[\]]+", key)]
    if not equals or not path or isinstance(path[0], int):
        raise UserError(f"'{word}': not an override; write key=value, such as train.lr=1e-3")
    return dict(merge(raw, normalise(_nest(raw, path, _value(text, word), word))))


def _value(text: str, word: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except YAML_ERRORS:
        raise UserError(f"'{word}': the value is not valid YAML; quote it") from None


def _nest(raw: Any, path: Sequence[str | int], value: Any, word: str) -> Any:
    """Return `value` under `path`; lists on the way are those of `raw` with one item changed."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, str):
        inner = raw.get(head) if isinstance(raw, Mapping) else None
        return {head: _nest(inner, rest, value, word)}
    if not isinstance(raw, list) or head >= len(raw):
        size = len(raw) if isinstance(raw, list) else 0
        raise UserError(f"'{word}': there is no item {head}; the list has {size} items")
    items = list(raw)
    items[head] = _merge(items[head], _nest(items[head], rest, value, word))
    return items


def check(cls: type[Section], raw: Any, where: str = "", under: str = "") -> Section:
    """Validate a raw section.

    Args:
        cls: The pydantic model.
        raw: What was read.
        where: Prefix of the sentence, such as the file's name.
        under: Path of the section in the whole configuration.

    Returns:
        The frozen section.

    Raises:
        UserError: One sentence for each mistake, a line each.
    """
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        # A union complains once for each member; one sentence for each place is enough.
        places = {_join(_locate(cls, d)[0]): d for d in reversed(error.errors())}
        # The members that stopped early say nothing where another one got further in.
        deepest = [
            details
            for place, details in places.items()
            if not any(other.startswith((f"{place}.", f"{place}[")) for other in places)
        ]
        sentences = [_sentence(cls, details, under) for details in reversed(deepest)]
        prefix = f"{where}: " if where else ""
        raise UserError("\n".join(prefix + sentence for sentence in sentences)) from None


def _sentence(cls: type[BaseModel], details: ErrorDetails, under: str) -> str:
    path, models = _locate(cls, details)
    path = [under, *path] if under else path
    name, kind, found = _join(path), details["type"], details["input"]
    if kind == "extra_forbidden":
        known = [field for model in models for field in model.model_fields]
        owner = f"{_join(path[:-1])}: " if path[:-1] else ""
        return f"{owner}no field '{path[-1]}'{suggest(str(path[-1]), known)}"
    if kind == "missing":
        return f"{name}: missing{_help(models, path)}"
    if kind in ("literal_error", "union_tag_invalid"):
        wanted = details["ctx"].get("expected", details["ctx"].get("expected_tags", ""))
        choices = re.findall(r"'([^']*)'", wanted) or re.split(r", | or ", wanted)
        if kind == "union_tag_invalid":
            name = f"{name}.kind" if isinstance(found, Mapping) else name
            found = details["ctx"]["tag"]
        return f"{name}: unknown value {found!r}{suggest(str(found), choices)}"
    if kind == "union_tag_not_found" and isinstance(found, Mapping):
        return f"{name}: needs a field 'kind' that says which"
    if kind == "too_short":
        least, length = details["ctx"]["min_length"], details["ctx"]["actual_length"]
        return f"{name}: needs at least {least} item{'s' * (least > 1)}, not {length}"
    if kind in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        return f"{name}: should be a mapping, not {_kind(found)}"
    message = details["msg"].removeprefix("Value error, ")
    message = re.sub(r"^(Input|String|List|Value) should", "should", message)
    if kind == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {message}, not {_kind(found)}"


def _help(models: list[type[BaseModel]], path: Sequence[str | int]) -> str:
    for model in models:
        field = model.model_fields.get(str(path[-1]))
        if field is not None and field.description:
            return f" ({' '.join(field.description.split()).rstrip('.')})"
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _join(path: Sequence[str | int]) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".")


def _locate(
    cls: type[BaseModel], details: ErrorDetails
) -> tuple[list[int | str], list[type[BaseModel]]]:
    """Turn pydantic's location into the user's path and the models that own its last part."""
    path: list[int | str] = []
    models, owners = [cls], [cls]
    key = False  # whether the next part is a key that the user chose
    for part in details["loc"]:
        fields = [m.model_fields[part] for m in models if part in m.model_fields and not key]
        stranger = part == details["loc"][-1] and details["type"] == "extra_forbidden"
        if isinstance(part, int) or fields or stranger or key:
            path.append(part)
            owners = models
            models = [m for f in fields for m in _models(f.annotation)] if fields else models
            key = any(get_origin(f.annotation) is dict for f in fields)
        else:  # the name of a union's member, which the user never wrote
            models = [m for m in models if _is_member(m, part)] or models
    return path, owners


def _is_member(model: type[BaseModel], tag: str) -> bool:
    return any(
        tag in get_args(model.model_fields[d].annotation)
        for d in DISCRIMINATORS
        if d in model.model_fields
    )


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def to_yaml(config: BaseModel) -> str:
    """Write a configuration as YAML that reads back as the same configuration."""
    return yaml.dump(
        config.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        width=99,
        allow_unicode=True,
    )
