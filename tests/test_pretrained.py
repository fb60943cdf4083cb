"""Models on disk: what comes back, and a sentence for everything that cannot."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ladder.build import build_model
from ladder.errors import UserError
from ladder.model import HierarchicalVAE
from ladder.pretrained import (
    CONFIG,
    WEIGHTS,
    from_pretrained,
    load_weights,
    push_to_hub,
    read_weights,
    save_pretrained,
    weights_bytes,
)


def small(dim: int = 3, hidden: int = 8, layers: int = 2) -> HierarchicalVAE:
    spec = {"dim": dim, "hidden": [hidden], "repeat": layers}
    return build_model(config={"system": "hierarchy", "shape": [1, 3, 4], "layers": [spec]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(small(), tmp_path / "saved")


def test_a_saved_folder_says_what_it_is(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, WEIGHTS, "README.md"])
    content = json.loads((folder / CONFIG).read_text())
    assert content["model"]["system"] == "hierarchy"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ladder-vae\n")
    count = sum(p.numel() for p in from_pretrained(folder).parameters())
    assert f"{count:,} parameters" in card


def test_weights_are_plain_safetensors(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    for name, tensor in from_pretrained(folder).state_dict().items():
        assert torch.equal(weights[name], tensor)


def test_saving_again_replaces(folder: Path) -> None:
    other = small()
    save_pretrained(other, folder)
    for name, tensor in from_pretrained(folder).state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert len(list(folder.iterdir())) == 3


def test_loading_does_not_depend_on_the_generator_s_state(folder: Path) -> None:
    torch.manual_seed(1)
    one = from_pretrained(folder).state_dict()
    torch.manual_seed(2)
    two = from_pretrained(folder).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_safetensors_file_can_be_read(tmp_path: Path) -> None:
    # The file begins with its header's length, whose first byte may be that of a pickle.
    first_bytes = set()
    for length in range(50, 90):
        weights = {"w" * length: torch.arange(3.0)}
        (tmp_path / WEIGHTS).write_bytes(weights_bytes(weights))
        first_bytes.add((tmp_path / WEIGHTS).read_bytes()[:1])
        again = read_weights(tmp_path / WEIGHTS)
        assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert b"\x80" in first_bytes


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/at/all: no such folder; give one that holds"):
        from_pretrained(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(UserError, match=r"\./runs/mine: no such folder"):
        from_pretrained("./runs/mine")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "null", '{"model": 3}'])
def test_a_config_that_is_none(folder: Path, content: str | None) -> None:
    if content is None:
        (folder / CONFIG).unlink()
    else:
        (folder / CONFIG).write_text(content)
    with pytest.raises(UserError, match="config"):
        from_pretrained(folder)


def test_a_config_with_an_unknown_field(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["model"]["likelyhood"] = content["model"].pop("likelihood")
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(UserError, match="no field 'likelyhood'; did you mean 'likelihood'"):
        from_pretrained(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS}: cannot be read: No such file"):
        from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(folder: Path, keep: float) -> None:
    data = (folder / WEIGHTS).read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    (folder / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(UserError, match=rf"{WEIGHTS}: truncated or not a safetensors file"):
        from_pretrained(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_unread(folder: Path, zipped: bool) -> None:
    weights = from_pretrained(folder).state_dict()
    torch.save(weights, folder / WEIGHTS, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="is a pickle, which can run code when read"):
        from_pretrained(folder)


def test_weights_of_another_model_are_named_by_layer(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(weights_bytes(small(dim=5, layers=3).state_dict()))
    with pytest.raises(UserError, match="weights of another model") as caught:
        from_pretrained(folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{folder / WEIGHTS}: weights of another model:"
    groups = {line.strip().split(":")[0]: line for line in lines[1:]}
    assert {"bottom_up.rungs.z1", "bottom_up.rungs.z3", "top_down.layers.z2"} <= groups.keys()
    # Each rung's head is 8 -> 2 dim; the third rung is in the file alone.
    assert "posterior.net.weight 10x8, not 6x8" in groups["bottom_up.rungs.z1"]
    assert "unexpected" in groups["bottom_up.rungs.z3"]


def test_a_missing_layer_is_named() -> None:
    model = small()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("likelihood")}
    with pytest.raises(UserError, match=r"likelihood: 0\.bias missing; 0\.weight missing"):
        load_weights(model, weights, "file")


def test_a_long_difference_is_cut() -> None:
    with pytest.raises(UserError, match=r"and \d+ more parts$") as caught:
        load_weights(small(layers=2), small(layers=30).state_dict(), "file")
    assert len(str(caught.value).splitlines()) <= 10


def test_a_model_is_untouched_by_weights_that_do_not_fit() -> None:
    model, other = small(), small(layers=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, other.state_dict(), "file")
    after: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_a_config_cannot_be_saved(tmp_path: Path) -> None:
    model = small()
    model.config = None
    with pytest.raises(UserError, match="has no config; make it with build_model"):
        save_pretrained(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_the_hub_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # so that importing it fails
    with pytest.raises(UserError, match=r"pip install 'ladder-vae\[hub\]'"):
        push_to_hub(small(), "me/model")
    with pytest.raises(UserError, match=r"me/model: no such folder; .*ladder-vae\[hub\]"):
        from_pretrained("me/model")


def test_a_local_folder_needs_no_client(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(folder.parent)
    assert not from_pretrained(folder.name).training


def test_a_path_of_two_parts_is_a_folder_before_it_is_an_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    save_pretrained(small(), tmp_path / "me" / "model")
    monkeypatch.chdir(tmp_path)
    assert isinstance(from_pretrained("me/model"), HierarchicalVAE)
