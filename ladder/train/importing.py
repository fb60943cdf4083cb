"""Released checkpoints as models one loads, or as runs one goes on with."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from ladder.build import build_model, list_systems, load_system, resolve
from ladder.config import Config, ModelConfig, Settings, leaves
from ladder.errors import UserError
from ladder.noise import seeded
from ladder.presets import list_presets
from ladder.pretrained import load_weights, save_pretrained
from ladder.train import checkpoint, run
from ladder.train.state import State, new_state

# What is no weight in a state dict, by the last part of its name.
COUNTS = {"num_batches_tracked": [torch.int64], "initialized": [torch.bool, torch.uint8]}


class Files(NamedTuple):
    """What was released.

    Attributes:
        model: Weights, or their average.
        ema: Average of the weights, beside the weights themselves; `None` without.
        optimizer: State of the optimiser that trained the weights; `None` without.
    """

    model: Path
    ema: Path | None = None
    optimizer: Path | None = None


def import_released(
    system: str, files: Files, preset: str | None, out: Path, overrides: Sequence[str] = ()
) -> Path:
    """Bring a released checkpoint into a folder of ours.

    Args:
        system: Name of the system; its module has `convert_released`.
        files: The released files. With an optimiser the folder is a run, which training goes on
            with; without one it is what `save_pretrained` writes. `from_pretrained` takes both.
        preset: Name of the preset, or a YAML file, that has the configuration; `None` takes what
            the released file says, where its system reads that.
        out: The folder; new or empty.
        overrides: Words `key=value` laid over the preset.

    Returns:
        The folder.

    Raises:
        UserError: If a file cannot be read safely, or is of another configuration; nothing is
            written then.
    """
    module = _converter(system)
    if files.ema is not None and files.optimizer is None:
        raise UserError(
            "ladder import: --ema goes with --optimizer, to go on with training; "
            f"to use the average, give {files.ema} as the file"
        )
    run.check_free(out)
    config, given, content = _configured(system, module, files.model, preset, overrides)
    weights = _weights(module, content, files.model, config)
    if files.optimizer is not None:
        return _as_run(module, files, config, weights, out, given)
    with seeded(0):  # initial weights are overwritten: leave the caller's generator alone
        model = build_model(config=config)
    load_weights(model, weights, str(files.model))
    run.create(out, config, given)  # so that it can be evaluated
    return save_pretrained(model, out)


def _configured(
    system: str, module: ModuleType, path: Path, preset: str | None, overrides: Sequence[str]
) -> tuple[Config[ModelConfig], str, Any]:
    """The configuration of a released file, the YAML that stands for it, and the state dict."""
    if preset is not None:
        config = resolve(preset, overrides)  # mistakes in words before those in large files
        if config.model.system != system:
            raise UserError(
                f"ladder import: '{preset}' is a model of system '{config.model.system}', not "
                f"'{system}'"
            )
    content, options = _unpacked(module, path)
    if preset is not None:
        _check_said(module, path, preset, config, options)
        return config, _given(preset, overrides), content
    if options is None:
        raise UserError(
            f"ladder import: {path} does not say its configuration; name it with --preset"
        )
    try:
        said = module.released_config(options)
        resolve(said)
    except UserError as error:
        raise UserError(f"{path}: {error}; name its configuration with --preset") from None
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in said.items())
    return resolve(said, overrides), _with_words(text, overrides), content


def _unpacked(module: ModuleType, path: Path) -> tuple[Any, Mapping[str, Any] | None]:
    """The state dict in a released file, and the options that the file says it was made with."""
    content = read_torch(path, getattr(module, "RELEASED_TYPES", ()))
    if not hasattr(module, "unpack_released"):
        return content, None
    state, options = module.unpack_released(content)
    return state, options


def _check_said(
    module: ModuleType,
    path: Path,
    preset: str,
    config: Config[ModelConfig],
    options: Mapping[str, Any] | None,
) -> None:
    """Refuse a configuration that the file itself contradicts: shapes do not show everything."""
    if options is None:
        return
    try:
        said = resolve(module.released_config(options))
    except UserError:  # which is why a preset is named
        return
    theirs, ours = _fields(said.model), _fields(config.model)
    for field in theirs:
        if field != "likelihood.bins" and theirs[field] != ours.get(field):
            raise UserError(
                f"{path}: was trained with model.{field}={theirs[field]!r}, but '{preset}' says "
                f"{ours.get(field)!r}; leave --preset out, or give model.{field}={theirs[field]}"
            )


def _fields(section: ModelConfig) -> dict[str, Any]:
    """Values by path; sections that may be written as a word are spelled out."""
    values = {k: dict(v) if isinstance(v, Settings) else v for k, v in dict(section).items()}
    return leaves(values)


def _given(preset: str, overrides: Sequence[str]) -> str:
    """What the user wrote, as YAML."""
    known = preset in list_presets()
    text = f"preset: {preset}\n" if known else Path(preset).read_text(encoding="utf-8")
    return _with_words(text, overrides)


def _with_words(text: str, overrides: Sequence[str]) -> str:
    return "".join([text, *(f"# {word}\n" for word in overrides)])


def _converter(system: str) -> ModuleType:
    module = load_system(system)
    if not hasattr(module, "convert_released"):
        able = [s for s in list_systems() if hasattr(load_system(s), "convert_released")]
        raise UserError(
            f"ladder import: nothing was released for system '{system}'; "
            f"choose from {', '.join(able)}"
        )
    return module


def _weights(
    module: ModuleType, content: Any, path: Path, config: Config[ModelConfig]
) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{path}: holds no state dict, which has a tensor for each name")
    _check_sound(content, path)
    try:
        weights: dict[str, Tensor] = module.convert_released(content, config.model)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('convert_released: ')}") from None
    return weights


def _as_run(
    module: ModuleType,
    files: Files,
    config: Config[ModelConfig],
    weights: dict[str, Tensor],
    out: Path,
    given: str,
) -> Path:
    if not hasattr(module, "convert_optimizer"):
        raise UserError(
            f"ladder import: the optimiser of system '{config.model.system}' is not known; "
            "leave --optimizer out"
        )
    if config.train.optimizer == "adamax":
        raise UserError(
            "train.optimizer: 'adamax' cannot go on with the moments of Adam; use adam or adamw"
        )
    state = new_state(config, torch.device("cpu"), total=config.train.steps or 1)
    load_weights(state.model, weights, str(files.model))
    if state.average is not None:
        average = weights if files.ema is None else _averaged(module, files.ema, config)
        _set_average(state, average)
    assert files.optimizer is not None
    moments = _moments(module, files.optimizer, config, state)
    checkpoint.set_moments(state, moments)
    state.step = int(moments[0]["step"])
    run.create(out, config, given)
    checkpoint.save(out / "checkpoints", state, config.train.keep)
    return out


def _averaged(module: ModuleType, path: Path, config: Config[ModelConfig]) -> dict[str, Tensor]:
    return _weights(module, _unpacked(module, path)[0], path, config)


@torch.no_grad()
def _set_average(state: State, average: Mapping[str, Tensor]) -> None:
    named = {**dict(state.model.named_parameters()), **dict(state.model.named_buffers())}
    by_id = {id(tensor): name for name, tensor in named.items()}
    assert state.average is not None
    for weight, mean in zip(state.weights, state.average, strict=True):
        mean.copy_(average[by_id[id(weight)]])


def _moments(
    module: ModuleType, path: Path, config: Config[ModelConfig], state: State
) -> dict[int, dict[str, Tensor]]:
    """State of our optimiser by the number of a parameter."""
    try:
        by_name = module.convert_optimizer(read_torch(path), config.model)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('convert_optimizer: ')}") from None
    for values in by_name.values():
        _check_sound(values, path)
    names = [name for name, _ in state.model.named_parameters()]
    return {i: by_name[name] for i, name in enumerate(names)}


def _check_sound(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what a damaged file, or another program, may hold."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UserError(f"{path}: '{name}' holds no values; the file is damaged")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            if tensor.dtype in COUNTS.get(name.rpartition(".")[2], []):
                continue
            raise UserError(f"{path}: '{name}' is {tensor.dtype}, {tensor.layout}; give floats")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: '{name}' holds NaN or infinite values; the file is damaged")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise UserError(f"{path}: '{name}' holds variances below 0; the file is damaged")


def read_torch(path: Path, types: Sequence[type] = ()) -> Any:
    """Read a file of `torch.save`, tensors and plain values only: nothing in it is executed.

    Args:
        path: The file.
        types: Inert records that it may hold as well.

    Returns:
        Its content, on the CPU.

    Raises:
        UserError: If it cannot be read, or holds anything else.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        if is_zipfile(path) and (damaged := ZipFile(path).testzip()) is not None:
            raise UserError(f"{path}: damaged: {damaged} in it has another checksum; get it again")
        with torch.serialization.safe_globals(list(types)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not a file of tensors and plain values; anything else in a pickle could run "
            "code, so it is not read: give the released file itself"
        ) from None
    except UserError:
        raise
    except (
        *(OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError),
        *(BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated, or not a file of torch.save ({reason})") from None
