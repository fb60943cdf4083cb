"""`ladder import nvae FILE`: the checkpoint says its own configuration, and runs nothing."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ladder
from ladder.build import build_model, resolve
from ladder.cli import main
from ladder.errors import UserError
from ladder.model import HierarchicalVAE
from ladder.systems.nvae.arguments import released_config
from ladder.systems.nvae.released import places, released_name

ARGS: dict[str, Any] = {
    "dataset": "cifar10",
    "num_channels_enc": 4,
    "num_channels_dec": 4,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_latent_per_group": 3,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 1,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_cell_per_cond_dec": 1,
    "num_nf": 1,
    "use_se": True,
    "res_dist": True,
    "num_x_bits": 8,
    "arch_instance": "res_mbconv",
    "num_mixture_dec": 10,
    # Of the training script; not of the model.
    "root": "/data",
    "learning_rate": 1e-2,
    "seed": 1,
}


def released(path: Path, model: HierarchicalVAE, args: Any) -> Path:
    """A checkpoint as the released code writes it."""
    known = places(model.config)
    state = {released_name(name, known): t for name, t in model.state_dict().items()}
    if "prior_ftr0" in state:
        state["prior_ftr0"] = state["prior_ftr0"][0]
    for name in [n for n in state if ".conv." in n and n.endswith(".weight")]:
        if state[name].ndim == 4 and name.replace(".weight", ".log_weight_norm") not in state:
            state[f"{name}_normalized"] = state[name]
    content = {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-2, "params": [0]}]},
        "global_step": 585,
        "args": args,
        "arch_instance": {"normal_enc": ["res_bnswish", "res_bnswish"]},
        "scheduler": {"T_max": 394, "last_epoch": 0},
        "grad_scalar": {"scale": 1024.0, "growth_factor": 2.0},
    }
    torch.save(content, path)
    return path


def made(**changes: Any) -> HierarchicalVAE:
    return build_model(config=released_config({**ARGS, **changes}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return released(tmp_path / "checkpoint.pt", made(), Namespace(**ARGS))


def sentence(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1, text
    return text


def words(file: Path, out: Path, *more: str) -> list[str]:
    return ["import", "nvae", str(file), "--out", str(out), *more]


def test_the_file_says_its_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = made()
    file = released(tmp_path / "checkpoint.pt", model, Namespace(**ARGS))
    out = tmp_path / "out"
    assert main([*words(file, out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out)}
    loaded = ladder.from_pretrained(out)
    assert loaded.config == model.config
    assert loaded.config.groups == [2, 1]
    assert loaded.config.likelihood.bins == "nvae"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    given = yaml.safe_load((out / "config.yaml").read_text())
    assert given["preset"] == "nvae_cifar10"
    assert resolve(out / "config.resolved.yaml").model == model.config
    assert resolve(out / "config.resolved.yaml").data.name == "cifar10"


def test_words_are_laid_over_what_the_file_says(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*words(file, out), "model.likelihood.bins=exact", "data=digits"]) == 0
    config = resolve(out / "config.resolved.yaml")
    assert (config.model.likelihood.bins, config.data.name) == ("exact", "digits")


def test_a_mistake_in_a_word_is_the_word_s(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = sentence(capsys, words(file, tmp_path / "out", "model.zdims=3"))
    assert text == "ladder: model: no field 'zdims'; did you mean 'zdim'?\n"


def test_a_preset_may_be_named_unless_the_file_contradicts(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(released_config(ARGS)))
    more = ["--preset", str(mine), "model.likelihood.bins=exact"]  # which weights do not depend on
    assert main(words(file, tmp_path / "one", *more)) == 0
    capsys.readouterr()
    # Shapes would not show this one.
    other = ["--preset", str(mine), "model.residual_posterior=false"]
    text = sentence(capsys, words(file, tmp_path / "two", *other))
    assert "was trained with model.residual_posterior=True" in text
    assert "says False; leave --preset out" in text
    text = sentence(capsys, words(file, tmp_path / "two", "--preset", "tiny_vdvae"))
    assert "'tiny_vdvae' is a model of system 'vdvae', not 'nvae'" in text
    assert not (tmp_path / "two").exists()


def test_a_bare_state_dict_needs_a_preset(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(file, weights_only=True)
    torch.save(content["state_dict"], file)
    text = sentence(capsys, words(file, tmp_path / "out"))
    assert "does not say its configuration; name it with --preset" in text
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(released_config(ARGS)))
    assert main(words(file, tmp_path / "out", "--preset", str(mine))) == 0


def test_systems_whose_files_say_nothing_need_a_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.th")
    start = ["import", "vdvae", str(tmp_path / "model.th"), "--out", str(tmp_path / "out")]
    assert "does not say its configuration; name it with --preset" in sentence(capsys, start)


class Trap:
    """Unpickling one would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("inside", [False, True])
def test_nothing_in_a_checkpoint_is_executed(
    inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = Trap(tmp_path / "trapped")
    args = Namespace(**ARGS, extra=trap) if inside else trap
    file = released(tmp_path / "checkpoint.pt", made(), args)
    assert "anything else in a pickle could run code" in sentence(
        capsys, words(file, tmp_path / "out")
    )
    assert not (tmp_path / "trapped").exists()
    assert not (tmp_path / "out").exists()


def test_a_record_of_options_cannot_reach_into_our_classes(tmp_path: Path) -> None:
    """Its attributes are read as plain values; one that hides a method changes nothing."""
    args = Namespace(**{**ARGS, "_get_kwargs": 3, "__dir__": "other"})
    file = released(tmp_path / "checkpoint.pt", made(), args)
    assert main(words(file, tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_nf": None}, "its 'args' do not say 'num_nf'"),
        ({"num_nf": "two"}, "num_nf='two', which should be of type int"),
        ({"use_se": 3}, "use_se=3, which should be of type bool"),
        ({"num_postprocess_blocks": 2}, "num_preprocess_blocks other than num_postprocess_blocks"),
        ({"arch_instance": "res_mbconv9"}, "arch_instance 'res_mbconv9', which is not known"),
        ({"dataset": "stacked_mnist"}, "the dataset 'stacked_mnist', whose size is not known"),
        ({"num_latent_scales": 6}, "cannot be halved 6 times"),
        ({"num_latent_per_group": 10**12}, "num_latent_per_group=1000000000000, which should be"),
        ({"num_latent_scales": 0}, "num_latent_scales=0, which should be from 1 to 1024"),
        ({"num_nf": -1}, "num_nf=-1, which should be from 0 to 1024"),
        ({"ada_groups": "yes"}, "ada_groups='yes', which should be of type bool"),
        ({"num_mixture_dec": 1, "num_x_bits": 5}, "num_mixture_dec=1 with num_x_bits below 8"),
        ({"num_channels_enc": 8}, "the state dict is not of this configuration"),
    ],
)
def test_options_that_are_none(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {k: v for k, v in {**ARGS, **changes}.items() if v is not None}
    file = released(tmp_path / "checkpoint.pt", made(), Namespace(**args))
    assert main(words(file, tmp_path / "out")) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda t: t.fill_(-1.0), "holds variances below 0; the file is damaged"),
        (lambda t: torch.empty_like(t, device="meta"), "holds no values; the file is damaged"),
    ],
)
def test_damaged_statistics_are_refused(
    damage: Any, expected: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(file, weights_only=True)
    name = "pre_process.0._ops.0.bn_act.running_var"
    content["state_dict"][name] = damage(content["state_dict"][name])
    torch.save(content, file)
    assert f"'{name}' {expected}" in sentence(capsys, words(file, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [Namespace(**{**ARGS, "dataset": "mine"}), {"dataset": "mine"}])
def test_a_preset_helps_where_options_cannot_be_read(
    args: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = released(tmp_path / "checkpoint.pt", made(), args)
    assert "with --preset" in sentence(capsys, words(file, tmp_path / "out"))
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(released_config(ARGS)))
    assert main(words(file, tmp_path / "out", "--preset", str(mine))) == 0


def test_equal_channels_may_be_said_twice(tmp_path: Path) -> None:
    file = released(tmp_path / "checkpoint.pt", made(), Namespace(**ARGS))
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(released_config(ARGS)))
    more = ["--preset", str(mine), "model.decoder_channels=4"]
    assert main(words(file, tmp_path / "out", *more)) == 0


def test_checkpoints_of_the_first_versions_leave_options_out(tmp_path: Path) -> None:
    """Their defaults: groups that do not adapt, ten logistics, eight bits."""
    model = made(ada_groups=False)
    old = ("ada_groups", "min_groups_per_scale", "num_mixture_dec", "num_x_bits")
    args = {k: v for k, v in ARGS.items() if k not in old}
    file = released(tmp_path / "checkpoint.pt", model, Namespace(**args))
    assert main(words(file, tmp_path / "out")) == 0
    assert ladder.from_pretrained(tmp_path / "out").config.groups == [2, 2]


PUBLISHED: dict[str, dict[str, Any]] = {
    "nvae_mnist": {"dataset": "mnist", "num_channels_enc": 32, "num_latent_scales": 2}
    | {"num_groups_per_scale": 10, "num_preprocess_blocks": 2, "num_preprocess_cells": 3},
    "nvae_cifar10": {"dataset": "cifar10", "num_channels_enc": 128, "num_latent_scales": 1}
    | {"num_groups_per_scale": 30, "num_nf": 1, "ada_groups": False},
    "nvae_celeba64": {"dataset": "celeba_64", "num_channels_enc": 64, "num_latent_scales": 3}
    | {"num_groups_per_scale": 20, "num_nf": 1},
    "nvae_imagenet32": {"dataset": "imagenet_32", "num_channels_enc": 192}
    | {"num_latent_scales": 1, "num_groups_per_scale": 28, "num_nf": 1},
    "nvae_celebahq256": {"dataset": "celeba_256", "num_channels_enc": 30, "num_x_bits": 5}
    | {"num_latent_scales": 5, "num_groups_per_scale": 16, "min_groups_per_scale": 4}
    | {"num_nf": 2},
    "nvae_ffhq256": {"dataset": "ffhq", "num_channels_enc": 30, "num_x_bits": 5}
    | {"num_latent_scales": 5, "num_groups_per_scale": 16, "min_groups_per_scale": 4}
    | {"num_nf": 2},
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_commands_are_the_presets(preset: str) -> None:
    """The README's options of each data set give the preset's model, field by field."""
    said = {**ARGS, "num_latent_per_group": 20, "num_nf": 0, "num_cell_per_cond_enc": 2}
    said |= {"num_cell_per_cond_dec": 2, "num_preprocess_cells": 2, **PUBLISHED[preset]}
    said |= {"num_channels_dec": said["num_channels_enc"]}
    said |= {f"num_postprocess_{k}": said[f"num_preprocess_{k}"] for k in ("blocks", "cells")}
    raw = released_config(said)
    assert raw["preset"] == preset
    assert "data" not in raw
    assert resolve(raw).model == resolve(preset).model


def test_sets_without_a_preset_keep_their_name() -> None:
    assert released_config({**ARGS, "dataset": "omniglot"})["data"] == {"name": "omniglot"}
    raw = released_config({**ARGS, "dataset": "lsun_bedroom_128", "num_mixture_dec": 1})
    assert raw["data"] == {"name": "lsun_bedroom_128"}
    assert raw["model"]["shape"] == [3, 128, 128]
    assert raw["model"]["likelihood"] == {"kind": "soft_normal"}


def test_a_preset_whose_resolution_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"'groups' has 2\) or 'blocks' \(2\), or images"):
        build_model("nvae_mnist", pad=0)
