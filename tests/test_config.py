"""From YAML and words to a configuration and a model, and a sentence for every mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ladder
from ladder import presets
from ladder.build import build_model, list_systems, preset_config, resolve
from ladder.config import Config, DataConfig, LinearSchedule, ModelConfig, TrainConfig
from ladder.errors import UserError
from ladder.model import HierarchicalVAE
from ladder.parse import check, merge, read_yaml, to_yaml
from ladder.presets import list_presets

PRESET = "mnist_2layer"
MODEL: dict[str, Any] = {"system": "hierarchy", "shape": [3], "layers": [{"dim": 2}, {"dim": 1}]}
WHOLE: dict[str, Any] = {"model": MODEL, "data": {"name": "digits"}, "train": {"epochs": 1}}


def with_values(**sections: dict[str, Any]) -> dict[str, Any]:
    raw = dict(WHOLE)
    for name, values in sections.items():
        raw[name] = {**raw.get(name, {}), **values}
    return raw


def sentence(source: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(source, list(overrides))
    return str(caught.value)


# --- YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("012", 12),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("True", True),
        ("false", False),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("nan", "nan"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    read = read_yaml(f"a: {text}", "file")["a"]
    assert read == value
    assert isinstance(read, bool) is isinstance(value, bool)


@pytest.mark.parametrize(
    "text",
    ["a: 1\nb: 2\na: 3", "b: 0\nx:\n  a: 1\n  a: 2", "x: {a: 1,\n\n a: 2}", "a: 1\n'a': 2"],
)
def test_a_key_given_twice_is_an_error_with_its_line(text: str) -> None:
    line = len(text.splitlines())
    with pytest.raises(UserError, match=rf"^file: line {line}: .*'a' is given twice"):
        read_yaml(text, "file")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the file is empty; it needs at least"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "not a configuration but a list"),
        ("hello", "not a configuration but 'hello'"),
        ("model: [", "line 1: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: *b", "not valid YAML"),
        ("\x00\x01", "not valid YAML"),
        ("[" * 1500, "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!float x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("[a, b]: 1", "not valid YAML"),
        ("{a: 1}: 2", "not valid YAML"),
        ("? {a: 1}\n: 2", "not valid YAML"),
    ],
)
def test_what_is_no_mapping_has_its_sentence(text: str, part: str) -> None:
    with pytest.raises(UserError, match=f"^file: .*{re.escape(part)}"):
        read_yaml(text, "file")


def outcome(text: str) -> str:
    try:
        return f"a {type(read_yaml(text, 'file')).__name__}"
    except UserError as error:
        return str(error)


@given(st.text(max_size=40))
def test_no_text_does_more_than_raise_a_sentence(text: str) -> None:
    assert re.match("a dict$|file: ", outcome(text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(bytes(range(256)))
    assert "not a text file" in sentence(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "config.yaml: cannot be read: No such file" in sentence(tmp_path / "config.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml: cannot be read: Is a directory" in sentence(tmp_path / "folder.yaml")
    assert "is neither a preset nor a YAML file" in sentence(tmp_path)


# --- precedence ---------------------------------------------------------------------------------


def test_precedence_is_override_file_preset_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: {PRESET}\ntrain: {{batch_size: 64, lr: 0.5}}\n")
    config = resolve(path, ["train.lr=1e-3"])
    preset = preset_config(PRESET)
    assert config.train.lr == 1e-3  # the word
    assert config.train.batch_size == 64  # the file
    assert config.train.epochs == preset.train.epochs == 20  # the preset
    assert config.train.weight_decay == 0.0  # the default
    assert config.model == preset.model
    assert config.preset == PRESET


def test_a_preset_named_on_the_command_line_lies_under_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {batch_size: 64}\n")
    config = resolve(path, ["train.lr=0.25", f"preset={PRESET}"])
    assert (config.train.batch_size, config.train.lr) == (64, 0.25)
    assert config.model == preset_config(PRESET).model


def test_later_words_win() -> None:
    assert resolve(PRESET, ["train.lr=1", "train.lr=2"]).train.lr == 2.0


@pytest.mark.parametrize(("mine", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_steps_and_epochs_replace_each_other(mine: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: {PRESET}\ntrain: {{{mine}: 5}}\n")
    by_file, by_word = resolve(path), resolve(PRESET, [f"train.{other}=9", f"train.{mine}=5"])
    for config in (by_file, by_word):
        assert getattr(config.train, mine) == 5
        assert getattr(config.train, other) is None


def test_giving_both_steps_and_epochs_is_an_error() -> None:
    raw = with_values(train={"epochs": 1, "steps": 1})
    assert sentence(raw) == "train: give exactly one of 'epochs' and 'steps'"
    raw = with_values(train={"epochs": None})
    assert sentence(raw) == "train: give exactly one of 'epochs' and 'steps'"


def test_another_kind_replaces_and_the_same_kind_merges() -> None:
    cyclic = {"kind": "cyclic", "period": 4, "start": 0.5}
    raw = with_values(objective={"kl_annealing": cyclic})
    same = resolve(raw, ["objective.kl_annealing.period=9"]).objective.kl_annealing
    assert (same.period, same.start) == (9, 0.5)
    other = resolve(raw, ["objective.kl_annealing={kind: linear, steps: 7}"])
    assert other.objective.kl_annealing == LinearSchedule(kind="linear", steps=7)


@pytest.mark.parametrize("swap", [False, True])
def test_a_kind_and_its_fields_come_in_any_order(swap: bool) -> None:
    words = ["objective.kl_annealing.kind=linear", "objective.kl_annealing.steps=7"]
    annealing = resolve(WHOLE, words[::-1] if swap else words).objective.kl_annealing
    assert annealing == LinearSchedule(kind="linear", steps=7)


def test_another_system_replaces_the_model() -> None:
    base, over = {"system": "a", "x": 1, "shape": [3]}, {"system": "b", "y": 2}
    assert merge({"model": base}, {"model": over}) == {"model": over}
    assert merge({"model": base}, {"model": {"x": 5}})["model"] == {**base, "x": 5}


def test_merging_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}}
    assert merge(base, over) == {"a": {"b": 2, "c": [1]}}
    assert base == {"a": {"b": 1, "c": [1]}}
    assert over == {"a": {"b": 2}}


def test_lists_replace() -> None:
    assert resolve(PRESET, ["model.layers=[{dim: 3}]"]).model.layers[0].hidden == []


def test_data_is_short_for_its_name(tmp_path: Path) -> None:
    base = with_values(data={"name": "mnist", "binarize": "dynamic", "validation": 100})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**base, "data": "digits"}))
    assert resolve(path).data == DataConfig(name="digits")
    assert resolve({**base, "data": "digits"}).data == DataConfig(name="digits")
    wanted = DataConfig(name="digits", binarize="dynamic", validation=100)
    assert resolve(base, ["data=digits"]).data == wanted
    assert resolve(base, ["data.name=digits"]).data == wanted


def test_data_shorthand_in_a_file_keeps_what_the_preset_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = to_yaml(preset_config(PRESET)).replace("binarize: none", "binarize: static")
    monkeypatch.setattr("ladder.build.preset_text", lambda _: text)
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: {PRESET}\ndata: digits\n")
    assert resolve(path).data == DataConfig(name="digits", binarize="static")
    assert resolve(PRESET, ["data=digits"]).data == DataConfig(name="digits", binarize="static")


def test_words_change_one_item_of_a_list() -> None:
    config = resolve(PRESET, ["model.layers[0].dim=64", "model.layers[1].hidden[0]=7"])
    first, second = config.model.layers
    assert (first.dim, first.hidden, second.dim, second.hidden) == (64, [256, 256], 16, [7])
    assert preset_config(PRESET).model.layers[0].dim == 32


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("train.lr", "'train.lr': not an override; write key=value"),
        ("=3", "'=3': not an override"),
        ("[0]=3", "'[0]=3': not an override"),
        ("train.lr=[", "'train.lr=[': the value is not valid YAML"),
        ("train.lr=!!int x", "'train.lr=!!int x': the value is not valid YAML"),
        ("model.layers[2].dim=3", "there is no item 2; the list has 2 items"),
        ("model.shape[3]=3", "there is no item 3; the list has 3 items"),
        ("train[0]=3", "'train[0]=3': there is no item 0"),
    ],
)
def test_words_that_are_no_overrides(word: str, part: str) -> None:
    assert part in sentence(PRESET, word)


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trian.lr=1", "no field 'trian'; did you mean 'train'?"),
        ("train.lrr=1", "train: no field 'lrr'; did you mean 'lr'?"),
        (
            "model.layers[1].hiden=[3]",
            "model.layers[1]: no field 'hiden'; did you mean 'hidden'?",
        ),
        (
            "objective.free_bits={nats: 1, perr: layer}",
            "objective.free_bits: no field 'perr'; did you mean 'per'?",
        ),
        (
            "objective.kl_annealing={kind: linear, steps: 3, period: 1}",
            "objective.kl_annealing: no field 'period'; "
            "choose from delay, end, kind, least, start, steps",
        ),
        (
            "model.inference=botom_up",
            "model.inference: unknown value 'botom_up'; did you mean 'bottom_up'?",
        ),
        (
            "model.likelihood=gausian",
            "model.likelihood: unknown value 'gausian'; did you mean 'gaussian'?",
        ),
        ("model.kl=closed", "model.kl: unknown value 'closed'; did you mean 'closed_form'?"),
        (
            "objective.kl_annealing.kind=linaer",
            "objective.kl_annealing.kind: unknown value 'linaer'; did you mean 'linear'?",
        ),
        (
            "objective.kl_annealing={steps: 3}",
            "objective.kl_annealing: needs a field 'kind' that says which",
        ),
        ("data.channels=2", "data.channels: unknown value 2; choose from 1, 3"),
        ("train.lr=fast", "train.lr: should be a valid number, not 'fast'"),
        ("train.lr='1'", "train.lr: should be a valid number, not '1'"),
        ("train.lr=true", "train.lr: should be a valid number, not true"),
        ("train.lr=-1", "train.lr: should be greater than 0, not -1"),
        ("train.lr=.inf", "train.lr: should be a finite number, not inf"),
        ("train.batch_size=1.5", "train.batch_size: should be a valid integer, not 1.5"),
        ("train.batch_size=0", "train.batch_size: should be greater than or equal to 1, not 0"),
        ("train.batch_size=[3]", "train.batch_size: should be a valid integer, not a list"),
        ("train.seed=-1", "train.seed: should be greater than or equal to 0, not -1"),
        ("train.betas=[0.9]", "train.betas: needs at least 2 items, not 1"),
        ("train.betas=[0.9, 1.0]", "train.betas[1]: should be less than 1, not 1.0"),
        ("train.ema=1", "train.ema: should be less than 1, not 1"),
        ("train=3", "train: should be a mapping, not 3"),
        ("model.layers[0]=3", "model.layers[0]: should be a mapping, not 3"),
        ("model.layers=[]", "model.layers: needs at least 1 item, not 0"),
        ("model.layers={dim: 3}", "model.layers: should be a valid list, not a mapping"),
        ("model.shape=[3, 0]", "model.shape[1]: should be greater than or equal to 1, not 0"),
        ("model.shape=[]", "model.shape: needs at least 1 item, not 0"),
        ("data.name=''", "data.name: should have at least 1 character, not ''"),
        (
            "model.system=hierarchi",
            "model.system: no system 'hierarchi'; did you mean 'hierarchy'?",
        ),
        ("preset=mnist_2layers", "no preset 'mnist_2layers'; did you mean 'mnist_2layer'?"),
    ],
)
def test_every_mistake_has_its_sentence(word: str, expected: str) -> None:
    found = sentence(PRESET, word)
    assert found == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, "model: missing; give a section 'model:' or 'preset: NAME'"),
        ({"model": {"shape": [3]}}, "model.system: missing"),
        ({**WHOLE, "model": {"system": "hierarchy", "shape": [3]}}, "model.layers: missing"),
        ({"model": MODEL, "train": {"steps": 1}}, "data: missing"),
        ({"model": MODEL, "data": "digits"}, "train: missing"),
        (with_values(model={"layers": [{"hidden": [3]}]}), "model.layers[0].dim: missing"),
    ],
)
def test_what_is_missing_is_named(raw: dict[str, Any], expected: str) -> None:
    assert sentence(raw).startswith(expected)


@pytest.mark.parametrize(
    "word",
    ["objective.kl_annealing=3", "model.system=3", "train.lr=null", "data=null", "train.resume=3"],
)
def test_sentences_name_the_path_and_the_value_in_plain_words(word: str) -> None:
    path, _, value = word.partition("=")
    found = sentence(PRESET, word)
    assert found.startswith(f"{path}: ")
    assert value in found
    assert not re.search(r"dictionary|\bobject\b|None|Input|extract", found)


def test_every_mistake_is_told_at_once_each_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"preset: {PRESET}\ntrain: {{lrr: 1, batch_size: 0}}\nmodel: {{kl: open}}\n")
    lines = sentence(path).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)
    for part in ("no field 'lrr'", "train.batch_size: ", "model.kl: unknown value 'open'"):
        assert sum(part in line for line in lines) == 1


@pytest.mark.parametrize("key", [1, None, True])
def test_keys_that_are_no_words(key: Any) -> None:
    assert "should be strings" in sentence({**WHOLE, "train": {"epochs": 1, key: 2}})


def test_an_unknown_source_names_the_nearest_preset() -> None:
    assert "did you mean 'mnist_2layer'?" in sentence("mnist2layer")


@pytest.mark.parametrize("name", [".hidden", "..", "a..b", ".", "no_such_package.model", "1.2"])
def test_systems_that_cannot_be_imported(name: str) -> None:
    found = sentence(with_values(model={"system": name}))
    assert found.startswith("model.system: ")
    assert f"'{name}'" in found


def test_a_system_without_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_system").mkdir()
    (tmp_path / "half_a_system" / "vae.py").write_text("class Config: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = sentence(with_values(model={"system": "half_a_system.vae"}))
    expected = "model.system: 'half_a_system.vae' needs a class 'Config' and a function 'build'"
    assert found == expected


# --- round trips --------------------------------------------------------------------------------


def round_trip(config: Config[ModelConfig]) -> Config[ModelConfig]:
    return resolve(read_yaml(to_yaml(config), "file"))


@pytest.mark.parametrize("name", list_presets())
def test_presets_come_back_from_their_yaml(name: str) -> None:
    config = preset_config(name)
    assert round_trip(config) == config
    # Any YAML reader gets the same values, also one of YAML 1.1.
    assert yaml.safe_load(to_yaml(config)) == config.model_dump(mode="json")


def test_a_run_s_yaml_keeps_what_replaced_the_preset_s_choice() -> None:
    words = ["train.steps=7", "objective.free_bits={nats: 1}", "train.ema=0.5"]
    config = resolve(PRESET, words)
    assert round_trip(config) == config
    assert round_trip(config).train.epochs is None


TRAPS = ["no", "1e-3", "012", "=", "<<", "2001-99-99", "0x_", "0b_", "12:30", "null", "", " a "]
TRAPS += ["a: b", "a #b", "- a", "'", '"', "\n", "a\nb", "é", "\u2028", "\ufeff", "%", "@a", "*a"]
TRAPS += ["true", "True", "NULL", "~", "1_0", "0o7", "[", "{", "!a", "&a", "|", ">", "\t", "?"]


@pytest.mark.parametrize("text", TRAPS, ids=ascii)
def test_strings_come_back_from_their_yaml(text: str) -> None:
    data = DataConfig(name="digits", root=text)
    assert check(DataConfig, read_yaml(to_yaml(data), "file")) == data
    assert yaml.safe_load(to_yaml(data))["root"] == text


printable = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1)
small = st.integers(1, 10**6)
positive = st.floats(1e-12, 1e12)


@given(
    name=printable,
    root=st.none() | printable,
    resize=st.none() | small | st.lists(small, min_size=2, max_size=2),
    validation=small,
)
def test_data_sections_come_back(name: str, root: Any, resize: Any, validation: int) -> None:
    data = DataConfig(name=name, root=root, resize=resize, validation=validation)
    assert check(DataConfig, read_yaml(to_yaml(data), "file")) == data


@given(epochs=positive, lr=positive, eps=positive, clip=st.none() | positive, resume=st.booleans())
def test_train_sections_come_back(
    epochs: float, lr: float, eps: float, clip: float | None, resume: bool
) -> None:
    train = TrainConfig(epochs=min(epochs, 1e6), lr=lr, eps=eps, grad_clip=clip, resume=resume)
    assert check(TrainConfig, read_yaml(to_yaml(train), "file")) == train


# --- presets and models -------------------------------------------------------------------------


def test_presets_are_listed_by_pattern() -> None:
    assert PRESET in list_presets()
    assert PRESET in list_presets("*mnist*")
    assert list_presets("no_such_*") == []
    assert len(set(list_presets())) == len(list_presets())


def test_presets_are_sorted_as_people_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a_10layer", "a_2layer", "b", "a_1layer", "2_a", "_hidden"):
        (tmp_path / f"{name}.yaml").write_text("# a\n")
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.setattr(presets, "files", lambda _: tmp_path)
    assert list_presets() == ["2_a", "a_1layer", "a_2layer", "a_10layer", "b"]
    assert list_presets("a_*") == ["a_1layer", "a_2layer", "a_10layer"]


@pytest.mark.parametrize("name", list_presets())
def test_presets_begin_with_their_headline(name: str) -> None:
    assert presets.preset_text(name).startswith("# ")
    assert len(presets.headline(name)) > 10


def test_unknown_presets_name_the_nearest() -> None:
    for call in (build_model, preset_config, presets.preset_text):
        with pytest.raises(UserError, match=r"no preset 'mnist2layer'; did you mean"):
            call("mnist2layer")


def same_shapes(one: HierarchicalVAE, two: HierarchicalVAE) -> bool:
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (one, two)]
    return shapes[0] == shapes[1]


def test_build_model_takes_a_dict_a_path_or_a_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(WHOLE))
    model = build_model(config=MODEL)
    config = resolve(WHOLE)
    for source in (WHOLE, path, str(path), config, config.model):
        other = build_model(config=source)
        assert other.config == model.config == config.model
        assert same_shapes(model, other)
        assert other.training


def test_build_model_takes_tuples_for_lists() -> None:
    tuples = {"system": "hierarchy", "shape": (3,), "layers": ({"dim": 2}, {"dim": 1})}
    assert build_model(config=tuples).config == build_model(config=MODEL).config
    assert build_model(config={**WHOLE, "model": tuples}).config.shape == [3]


def test_overrides_replace_fields_and_none_keeps_them() -> None:
    model = build_model(config=MODEL, likelihood="gaussian", kl=None, shape=(5,))
    assert (model.config.likelihood.kind, model.config.kl, model.config.shape) == (
        "gaussian",
        "sampled",
        [5],
    )
    assert build_model(PRESET, layers=None).config == preset_config(PRESET).model
    deeper = build_model(config=MODEL, layers=[{"dim": 2, "repeat": 4}])
    assert len(deeper.top_down.layers) == 4


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: build_model(), "needs either a preset or a config"),
        (lambda: build_model(PRESET, config=MODEL), "needs either a preset or a config"),
        (lambda: build_model(PRESET, likelyhood="x"), "'likelyhood'; did you mean 'likelihood'"),
        (
            lambda: build_model(PRESET, likelihood="x"),
            "likelihood: unknown value 'x'; choose from",
        ),
        (lambda: build_model(config={**MODEL, "layers": []}), "layers: needs at least 1 item"),
        (lambda: build_model(config={"shape": [3]}), "model.system: missing"),
        (lambda: build_model(config="nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (lambda: build_model(PRESET, system="hierarch"), "no system 'hierarch'; did you mean"),
    ],
)
def test_build_model_s_mistakes_have_their_sentence(call: Any, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        call()


def test_a_configuration_is_frozen() -> None:
    config = preset_config(PRESET)
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0
    with pytest.raises(ValueError, match="frozen"):
        build_model(config=MODEL).config.kl = "closed_form"


def test_the_number_of_layers_is_the_sum_of_repeats() -> None:
    layers = [{"dim": 3, "repeat": 2}, {"dim": 1}, {"dim": 2, "repeat": 3}]
    model = build_model(config={**MODEL, "layers": layers})
    latents = model.decode(1)[1]
    sizes = {name: latent.z.shape[1] for name, latent in latents.items()}
    assert sizes == {"z6": 2, "z5": 2, "z4": 2, "z3": 1, "z2": 3, "z1": 3}


def test_a_system_of_somebody_else_works_like_a_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "vae.py").write_text(
        "from typing import Literal\n"
        "from ladder.config import ModelConfig\n"
        "from ladder.systems import hierarchy\n"
        "class Config(ModelConfig):\n"
        "    width: int = 2\n"
        "    '''Size of the one latent.'''\n"
        "def build(config):\n"
        "    inner = hierarchy.Config(shape=config.shape, layers=[{'dim': config.width}])\n"
        "    return hierarchy.build(inner)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    theirs = {"system": "their_package.vae", "shape": [4], "width": 3}
    config = resolve(with_values(model={}) | {"model": theirs}, ["model.width=5"])
    model = build_model(config=config)
    assert model.config.width == 5
    assert model.decode(2)[1]["z1"].z.shape == (2, 5)
    assert round_trip(config) == config
    wrong = {**WHOLE, "model": {**theirs, "widht": 5}}
    assert sentence(wrong) == "model: no field 'widht'; did you mean 'width'?"
    loaded = ladder.from_pretrained(ladder.save_pretrained(model, tmp_path / "saved"))
    assert loaded.config == model.config


def test_built_in_systems_are_modules_with_config_and_build() -> None:
    assert "hierarchy" in list_systems()


def test_building_only_advances_the_generator() -> None:
    torch.manual_seed(3)
    build_model(config=MODEL)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    first = build_model(config=MODEL).state_dict()
    assert torch.equal(after, torch.get_rng_state())
    second = build_model(config=MODEL).state_dict()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(after, torch.get_rng_state())


# --- importing ----------------------------------------------------------------------------------


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_names_of_presets_need_neither_torch_nor_pydantic() -> None:
    loaded = modules_after("import ladder, ladder.presets; ladder.presets.list_presets()")
    assert "ladder.presets" in loaded
    assert loaded.isdisjoint({"torch", "pydantic", "numpy", "yaml"})


def test_reading_a_configuration_needs_no_torch() -> None:
    loaded = modules_after("import ladder.config, ladder.parse")
    assert "pydantic" in loaded
    assert "torch" not in loaded


def test_building_needs_neither_torchvision_nor_matplotlib() -> None:
    loaded = modules_after(f"import ladder; ladder.build_model({PRESET!r})")
    assert "torch" in loaded
    assert loaded.isdisjoint({"torchvision", "matplotlib", "huggingface_hub", "tensorboard"})


def test_every_public_name_is_there_and_documented() -> None:
    for name in ladder.__all__:
        assert getattr(ladder, name).__doc__, name
        assert name in dir(ladder)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ladder.no_such_name
