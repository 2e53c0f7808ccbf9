"""The public surface: every knob with its default, every choice, and what may not creep in."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from finetune.config.compose import compose
from finetune.config.conflicts import idle
from finetune.config.messages import known_keys
from finetune.config.schema import NAMED
from finetune.config.shipped import configs_folder
from support.runs import CHECKOUT

CONFIGS = configs_folder()
GROUPS = ("data", "optimizer", "trainer")
DEFAULTS = {
    "model": "resnet18",
    "weights": "auto",
    "freeze": ["all"],
    "head": "auto",
    "head_hidden": [],
    "head_dropout": 0,
    "standardize": "auto",
    "batchnorm": "pretrained",
    "head_features": "last",
    "loss": "cross_entropy",
    "label_smoothing": 0,
    "class_weights": "none",
    "mixup": 0,
    "cutmix": 0,
    "erasing": 0,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0,
    "optimizer.nesterov": False,
    "optimizer.backbone_lr_factor": 1,
    "optimizer.layer_decay": 1,
    "optimizer.decay_norm_and_bias": False,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "step_epochs": 7,
    "step_gamma": 0.1,
    "epochs": 20,
    "max_steps": None,
    "batch_size": 64,
    "best": "accuracy",
    "refit": False,
    "patience": None,
    "ema": None,
    "seed": 0,
    "monitor_gradients": False,
    "callbacks": [],
    "logger": ["tensorboard"],
    "phases": [],
    "time_limit": None,
    "fast_dev_run": False,
    "data.source": "clipart",
    "data.root": None,
    "data.name": None,
    "data.nested": False,
    "data.split": "auto",
    "data.image_column": None,
    "data.label_column": None,
    "data.label_separator": None,
    "data.image_folder": None,
    "data.image_suffix": None,
    "data.image_size": "auto",
    "data.crop": "center",
    "data.augment": "auto",
    "data.val_fraction": 0.15,
    "data.test_fraction": 0.15,
    "data.split_seed": None,
    "data.folds": None,
    "data.fold": None,
    "data.group_column": None,
    "data.group": None,
    "data.bad_images": "error",
    "data.workers": "auto",
    "cache": "auto",
    "cache_dir": "~/.cache/finetune",
    "cache_max_gb": 20,
    "cache_shared": False,
    "precision": "auto",
    "compile": "auto",
    "trainer.accelerator": "auto",
    "trainer.devices": 1,
    "trainer.nodes": 1,
    "trainer.accumulate_batches": 1,
    "trainer.clip_norm": None,
    "trainer.checkpoint_every": None,
    "trainer.profiler": None,
    "resume": None,
}
CHOICES = {
    "data": [
        "cifar10",
        "cifar100",
        "clipart",
        "csv",
        "digits",
        "eurosat",
        "fashion_mnist",
        "flowers102",
        "folder",
        "food101",
        "hf",
        "oxford_pets",
        "random",
        "torchvision",
        "webdataset",
    ],
    "optimizer": ["adamw", "lbfgs", "sgd"],
    "trainer": ["auto", "cpu", "ddp", "gpu"],
}


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found


def files(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def test_the_knobs_and_their_defaults_are_these() -> None:
    assert flat(compose([]).model_dump()) == DEFAULTS


def test_config_and_settings_have_the_same_knobs() -> None:
    # A strict model forbids a key too many and demands every key; this says that no other choice adds one.
    choices = [f"{group}={choice}" for group in GROUPS for choice in files(group)]
    composed = {key for choice in choices for key in flat(compose([choice]).model_dump())}
    assert composed == set(known_keys()) - set(GROUPS) == {*DEFAULTS, "optimizer.select"}


def test_what_has_no_effect_is_known() -> None:
    assert idle(compose([])) == []
    assert idle(compose(["schedule=step", "step_gamma=0.5"])) == []
    told = idle(compose(["step_gamma=0.5", "step_epochs=2"]))
    assert told == [
        f"{knob} has no effect with schedule=cosine" for knob in ("step_epochs=2", "step_gamma=0.5")
    ]
    solved = ["trainer.clip_norm=1.0", "trainer.accumulate_batches=4"]
    chosen = ["optimizer=lbfgs", "optimizer.select=val"]
    assert idle(compose([*solved, *chosen])) == [
        f"{one} has no effect with optimizer=lbfgs" for one in solved
    ]
    rates = ["optimizer.backbone_lr_factor=0.1", "optimizer.layer_decay=0.5", "data.test_fraction=0.3"]
    assert idle(compose([*rates, "data.folds=3", "freeze=all"])) == [
        f"{one} has no effect with {other}"
        for one, other in zip(rates, ("freeze=all", "freeze=all", "data.folds"), strict=True)
    ]
    assert not idle(compose([*rates, "freeze=through:layer3"]))
    assert not idle(compose([*rates[:2], "freeze=all", "phases=[{epochs: 1},{freeze: none}]"]))
    told = "optimizer.select=val has no effect with optimizer.weight_decay, a number"
    assert idle(compose([*chosen, "optimizer.weight_decay=0.1"])) == [told]


def test_the_groups_have_these_choices() -> None:
    assert all({*CHOICES[group]} <= {*files(group)} for group in GROUPS)


def test_adamw_brings_its_own_defaults() -> None:
    assert compose(["optimizer=adamw"]).optimizer.model_dump() == {
        "name": "adamw",
        "lr": 0.001,
        "weight_decay": 0.01,
        "backbone_lr_factor": 1,
        "layer_decay": 1,
        "decay_norm_and_bias": False,
    }


@pytest.mark.parametrize("name", files("data"))
def test_a_data_file_is_named_as_the_source_or_the_set_it_chooses(name: str) -> None:
    from torchvision import datasets

    from finetune.data.sources import SOURCES

    data = compose([f"data={name}"]).data
    if name in SOURCES:
        assert (data.source, data.name) == (name, None)
    else:
        assert data.source == "torchvision"
        assert hasattr(datasets, str(data.name))


def test_every_source_has_a_file() -> None:
    from finetune.data.sources import SOURCES

    assert set(SOURCES) <= set(files("data"))


@pytest.mark.parametrize("name", files("trainer"))
def test_a_trainer_file_is_named_as_the_device_it_chooses(name: str) -> None:
    chosen = compose([f"trainer={name}"]).trainer
    assert (chosen.accelerator, chosen.devices) == (("auto", "auto") if name == "ddp" else (name, 1))


@pytest.mark.parametrize("name", files("experiment"))
def test_an_experiment_composes_and_validates(name: str) -> None:
    assert compose([f"experiment={name}"]) != compose([])


def test_the_command_line_wins_over_an_experiment() -> None:
    assert compose(["experiment=notebook_step"]).epochs != 7
    assert compose(["experiment=notebook_step", "epochs=7"]).epochs == 7


def test_plain_knobs_have_no_folder_of_their_name() -> None:
    # Hydra takes head=10 for the choice of a group as soon as there is a folder head, and refuses it.
    plain = {key for key in DEFAULTS if "." not in key}
    assert not plain & {path.name for path in CONFIGS.iterdir()}


def test_config_fits_one_screen() -> None:
    assert len((CONFIGS / "config.yaml").read_text().splitlines()) <= 95


def test_every_plain_knob_is_in_config_with_a_comment_or_a_plain_name() -> None:
    written = yaml.safe_load((CONFIGS / "config.yaml").read_text())
    sections = ("defaults", "hydra")
    assert set(flat({key: value for key, value in written.items() if key not in sections})) == {
        key
        for key in DEFAULTS
        if key.partition(".")[0] not in ("optimizer", "trainer") and key != "data.source"
    }


def test_no_choice_is_a_word_that_yaml_reads_as_true_or_false() -> None:
    words = {"on", "off", "yes", "no", "y", "n"}
    assert not words & {path.stem for path in CONFIGS.rglob("*.yaml")}
    offered = [word for words in _literals() for word in words if isinstance(word, str)]
    offered += [name for tables in NAMED.values() for table in tables for name in table]
    assert "cosine" in offered
    assert not words & set(offered)


def _literals() -> list[list[Any]]:
    from finetune.config import schema

    schema = schema.Settings.model_json_schema()
    nodes, found = [schema], []
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            found.append(node.get("enum", [node["const"]] if "const" in node else []))
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
    return found


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("head=10", "head", 10),
        ("head=keep", "head", "keep"),
        ("freeze=none", "freeze", ["none"]),
        ("freeze=-layer4", "freeze", ["-layer4"]),
        ("freeze=[all,-@norm]", "freeze", ["all", "-@norm"]),
        ("freeze=through:layer3", "freeze", ["through:layer3"]),
        ("freeze=[layer?.0.*,-*.bn?]", "freeze", ["layer?.0.*", "-*.bn?"]),
        ("head_hidden=[256,64]", "head_hidden", [256, 64]),
        ("precision=32", "precision", "32"),
        ("precision=bf16", "precision", "bf16"),
        ("compile=true", "compile", True),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("optimizer.lr=1", "optimizer.lr", 1),
        ("data.root=2026", "data.root", "2026"),
        ("data.root='my pictures'", "data.root", "my pictures"),
        ("data.image_size=96", "data.image_size", 96),
        ("trainer.clip_norm=1", "trainer.clip_norm", 1),
        ("patience=3", "patience", 3),
    ],
)
def test_a_value_arrives_as_it_was_meant(override: str, key: str, value: Any) -> None:
    assert flat(compose([override]).model_dump())[key] == value


def test_configs_are_the_checkouts_when_the_package_holds_none() -> None:
    assert (CHECKOUT / "configs").samefile(CONFIGS)
