"""From a preset or a configuration to a model."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Union, cast

from ladder import systems
from ladder.config import Config, ModelConfig
from ladder.errors import UserError, suggest
from ladder.model import HierarchicalVAE
from ladder.parse import apply_override, check, merge, normalise, read_yaml
from ladder.presets import list_presets, preset_text


def load_system(name: str) -> ModuleType:
    """Import a system.

    Args:
        name: A built-in system, or the dotted name of a module with `Config` and `build`.

    Returns:
        The module.

    Raises:
        UserError: If there is no such module, or it lacks `Config` or `build`.
    """
    builtin = list_systems()
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise UserError(f"model.system: '{name}' is not the name of a module")
    path = f"{systems.__name__}.{name}" if name in builtin else name
    if path == name and "." not in name and importlib.util.find_spec(name) is None:
        raise UserError(f"model.system: no system '{name}'{suggest(name, builtin)}")
    try:
        module = importlib.import_module(path)
    except ImportError as error:
        raise UserError(f"model.system: cannot import '{path}': {error}") from None
    if not (hasattr(module, "Config") and hasattr(module, "build")):
        raise UserError(f"model.system: '{path}' needs a class 'Config' and a function 'build'")
    if not (isinstance(module.Config, type) and issubclass(module.Config, ModelConfig)):
        raise UserError(f"model.system: '{path}.Config' should subclass ladder.config.ModelConfig")
    return module


def list_systems() -> list[str]:
    """Names of the built-in systems."""
    return sorted(module.name for module in pkgutil.iter_modules(systems.__path__))


def resolve(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Config[ModelConfig]:
    """Read a whole configuration: overrides over the source over its preset over the defaults.

    Args:
        source: Name of a preset, path of a YAML file, or a mapping like its content.
        overrides: Words `key=value`, such as `train.lr=1e-3`.

    Returns:
        The checked configuration.

    Raises:
        UserError: One sentence for each mistake.
    """
    raw, where = _read(source)
    for word in overrides:
        if word.startswith("preset="):
            raw = apply_override(raw, word)
    if raw.get("preset") is not None:
        raw = merge(read_yaml(preset_text(str(raw["preset"])), str(raw["preset"])), raw)
    for word in overrides:
        raw = apply_override(raw, word)
    section: Any = _system_config(raw, where)
    return cast("Config[ModelConfig]", check(Config[section], raw, where))


def _read(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return normalise(source), ""
    path = Path(source)
    if isinstance(source, str) and source in list_presets():
        return {"preset": source}, ""
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise UserError(
            f"'{source}' is neither a preset nor a YAML file{suggest(str(source), list_presets())}"
        )
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path)), str(path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; a configuration is YAML") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _system_config(raw: Mapping[str, Any], where: str) -> type[ModelConfig]:
    model = raw.get("model")
    prefix = f"{where}: " if where else ""
    if not isinstance(model, Mapping):
        raise UserError(f"{prefix}model: missing; give a section 'model:' or 'preset: NAME'")
    if not isinstance(model.get("system"), str):
        wrong = f"should be a name, not {model['system']!r}" if "system" in model else "missing"
        raise UserError(f"{prefix}model.system: {wrong}; say which, such as 'system: hierarchy'")
    config: type[ModelConfig] = load_system(model["system"]).Config
    return config


def preset_config(name: str) -> Config[ModelConfig]:
    """The whole configuration of a preset: model, objective, data and training recipe.

    Args:
        name: One of `list_presets()`.

    Returns:
        The configuration.

    Raises:
        UserError: If there is no such preset; it names the nearest.
    """
    preset_text(name)
    return resolve(name)


def build_model(
    preset: str | None = None,
    *,
    config: str | Path | Mapping[str, Any] | Config[ModelConfig] | ModelConfig | None = None,
    **overrides: Any,
) -> HierarchicalVAE:
    """Build a model with freshly initialised weights.

    Nothing is seeded: call `torch.manual_seed` before it for a reproducible start.

    Args:
        preset: Name of a preset; or give `config`.
        config: Path of a YAML file, a mapping (a whole configuration or its model section), or a
            configuration object.
        **overrides: Fields of the model section, such as `likelihood="gaussian"`; `None` keeps
            what the preset or configuration says.

    Returns:
        The model in training mode; `model.config` is its model section.

    Raises:
        UserError: If a name or a value is wrong.
    """
    if (preset is None) == (config is None):
        raise UserError("build_model needs either a preset or a config")
    section = preset_config(preset).model if preset is not None else _model_section(config)
    changes = {key: value for key, value in overrides.items() if value is not None}
    if changes:
        raw = merge(section.model_dump(), _plain(changes))
        section = check(_system_config({"model": raw}, ""), raw, under="model")
    model: HierarchicalVAE = load_system(section.system).build(section)
    model.config, model.shape = section, tuple(section.shape)
    return model


def _model_section(config: Any) -> ModelConfig:
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, Config):
        return cast("ModelConfig", config.model)
    if isinstance(config, Mapping) and "model" not in config and "preset" not in config:
        return check(_system_config({"model": config}, ""), _plain(config), under="model")
    return resolve(_plain(config) if isinstance(config, Mapping) else config).model


def _plain(value: Any) -> Any:
    """Tuples are lists in a configuration, and sections are mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.model_dump() if isinstance(value, ModelConfig) else value


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, with every built-in system's fields.

    A file may leave out whatever its preset says, so nothing is required.
    """
    sections: Any = Union[tuple(load_system(name).Config for name in list_systems())]  # noqa: UP007
    schema = Config[sections].model_json_schema()
    schema["title"] = "ladder configuration"
    data = schema["properties"]["data"]
    schema["properties"]["data"] = {"anyOf": [data, {"type": "string"}]}
    for definition in (schema, *schema.get("$defs", {}).values()):
        if definition is schema or definition.get("title") in ("TrainConfig", "DataConfig"):
            definition.pop("required", None)
    for section in schema["$defs"].values():
        if "system" in section.get("properties", {}):
            section.pop("required", None)
    return schema
