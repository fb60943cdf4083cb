"""Models on disk: a folder with config.json, model.safetensors and a model card. No pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ladder.build import build_model
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.model import HierarchicalVAE
from ladder.noise import seeded
from ladder.released import difference

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PICKLES = (b"\x80", b"PK")  # a bare pickle, and the zip that torch.save writes

CARD = """---
library_name: ladder-vae
license: mit
tags:
- hierarchical-vae
- variational-autoencoder
---

# {title}

A hierarchical VAE of system `{system}` with {parameters:,} parameters, for data of shape {shape}.

```python
import ladder

model = ladder.from_pretrained("path/or/hub-id")
images = ladder.sample(model, 16, seed=0).mean
```
"""


def save_pretrained(model: HierarchicalVAE, directory: str | Path) -> Path:
    """Write config.json, model.safetensors and a model card.

    Args:
        model: A model made by `build_model` or `from_pretrained`.
        directory: Folder to write into; made if it is not there.

    Returns:
        The folder.

    Raises:
        UserError: If the model has no `config`.
        OSError: If the folder cannot be written.
    """
    if model.config is None:
        raise UserError("save_pretrained: the model has no config; make it with build_model")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, weights_bytes(model.state_dict()))
    write_atomic(folder / CONFIG, config_json(model))
    card = CARD.format(
        title=folder.resolve().name,
        system=model.config.system,
        parameters=sum(p.numel() for p in model.parameters()),
        shape=model.config.shape,
    )
    write_atomic(folder / "README.md", card)
    return folder


def from_pretrained(source: str | Path, device: str = "cpu") -> HierarchicalVAE:
    """Load a model, in evaluation mode.

    Args:
        source: A folder that `save_pretrained` wrote, a checkpoint of a run, a run (its last
            checkpoint), or the id of a repository on the Hugging Face hub.
        device: Where to put it.

    Returns:
        The model.

    Raises:
        UserError: If nothing is there, or the weights are truncated, pickled, or another model's.
    """
    folder = _local(source)
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        section = dict(content["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / CONFIG}: cannot be read as a model's config: {error}"
        ) from None
    with seeded(0):  # initial weights are overwritten: leave the caller's generator alone
        model = build_model(config=section)
    weights = read_weights(folder / WEIGHTS)
    for dtype in {w.dtype for w in weights.values() if w.is_floating_point()}:
        model = model.to(dtype)  # one for all, unless somebody mixed them by hand
    load_weights(model, weights, str(folder / WEIGHTS))
    return model.to(device).eval()


def push_to_hub(model: HierarchicalVAE, repo_id: str, private: bool = False) -> str:
    """Upload a model to the Hugging Face hub; needs `pip install 'ladder-vae[hub]'`.

    Args:
        model: The model.
        repo_id: Such as `"me/my-ladder"`.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        UserError: If huggingface_hub is not installed.
    """
    import tempfile

    hub = _hub()
    with tempfile.TemporaryDirectory() as directory:
        folder = save_pretrained(model, Path(directory) / repo_id.split("/")[-1])
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=str(folder)))


def config_json(model: HierarchicalVAE) -> str:
    """The model section and the version that wrote it, as JSON."""
    content = {
        "ladder_version": version("ladder-vae"),
        "model": model.config.model_dump(mode="json"),
    }
    return json.dumps(content, indent=2) + "\n"


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors."""
    return safetensors.torch.save({k: v.detach().contiguous() for k, v in state.items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: If it is missing, a pickle, truncated, or no safetensors file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        # Asked only now: the length that a safetensors file begins with may look the same.
        if data.startswith(PICKLES):
            raise UserError(
                f"{path}: is a pickle, which can run code when read; use safetensors"
            ) from None
        raise UserError(f"{path}: truncated or not a safetensors file ({error})") from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a model whose names and shapes are exactly the same.

    Args:
        model: The model.
        weights: Tensors by name.
        where: Name of the file, for the sentence.

    Raises:
        UserError: With the difference, grouped by layer; the model is then untouched.
    """
    own = model.state_dict()
    expected = {name: tuple(t.shape) for name, t in own.items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    lines = difference(expected, found, layer=r".*?\.z\d+|[^.]+")
    if lines:
        raise UserError(f"{where}: weights of another model:\n" + "\n".join(lines))
    model.load_state_dict(dict(weights))


def pointed(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that the file `last` or `best` in a run's `checkpoints` names, or `None`."""
    file = folder / pointer
    return folder / file.read_text(encoding="utf-8").strip() if file.is_file() else None


def trained(folder: Path) -> Path | None:
    """Where the weights of a run, or of an imported folder, are; `None` if there are none yet."""
    return pointed(folder / "checkpoints", "last") or (
        folder if (folder / WEIGHTS).is_file() else None
    )


def _local(source: str | Path) -> Path:
    folder = Path(source)
    if (place := trained(folder)) is not None:
        return place
    if folder.is_dir():
        return folder
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and source[0] != ".":
        return _download(source)
    raise UserError(f"{source}: no such folder; give one that holds {CONFIG} and {WEIGHTS}")


def _download(repo_id: str) -> Path:
    try:
        return Path(_hub().snapshot_download(repo_id, allow_patterns=[CONFIG, WEIGHTS]))
    except UserError:
        raise UserError(
            f"{repo_id}: no such folder; to load it from the hub, pip install 'ladder-vae[hub]'"
        ) from None
    except Exception as error:  # the client has a dozen kinds, all of them "not there"
        reason = str(error).splitlines()[0]
        raise UserError(f"{repo_id}: neither a folder nor downloadable: {reason}") from None


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the hub needs huggingface_hub: pip install 'ladder-vae[hub]'") from None
    return huggingface_hub
