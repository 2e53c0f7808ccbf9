"""A run opened again: its model as the best epoch left it, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn

from finetune.atomic import read_json, sha256_of
from finetune.config.messages import validate
from finetune.config.schema import Settings, configs_folder
from finetune.errors import RequestError
from finetune.model.build import build_model
from finetune.model.head import find_head, replace_head
from finetune.model.preprocessing import Preprocessing
from finetune.model.statedict import read_state_dict
from finetune.model.weights import enum_of
from finetune.runs.folder import LATEST, read_summary

CHOSEN = {"optimizer": "name", "data": "source", "trainer": "accelerator"}  # what tells a group's chosen file


@dataclass(frozen=True)
class Saved:
    """A run on disk.

    network: the whole model in eval mode, in float32 on the CPU.
    head: full name of the layers that give the logits, of which there are `outputs`.
    summary: what the run came to; None where it has not ended.
    trained_on: the fingerprint of its data; None where an older version has not told it.
    """

    folder: Path
    settings: Settings
    network: nn.Module
    head: str
    outputs: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    summary: dict[str, Any] | None
    trained_on: str | None = None

    @property
    def names(self) -> list[str]:
        """A name for each output; those beyond the classes have numbers."""
        return [*self.classes, *(f"output {number}" for number in range(len(self.classes), self.outputs))]


def find(run: str) -> Path:
    """The folder that `RUN` on the command line means: a path, or `latest`.

    Raises:
        RequestError: there is no such folder, or it holds no run.
    """
    if run == "latest" and not Path(run).exists():
        if not LATEST.exists():
            raise RequestError(f"latest: expected {LATEST}, which the first run writes; there is none here")
        folder = Path(LATEST.read_text(encoding="utf-8").strip())
    else:
        folder = Path(run)
    if not (folder / "settings.json").is_file():
        what = "settings.json in it" if folder.is_dir() else "there is no such folder"
        raise RequestError(f"{folder}: expected the folder of a run, {what}")
    return folder


def settings_of(folder: Path) -> Settings:
    """What the run was asked for; a knob that there was not yet has its default.

    Raises:
        RequestError: settings.json is damaged, or has a knob that there is not.
    """
    return validate(completed(read_json(folder / "settings.json", "the settings of a run")))


def check_settings(folder: Path, sha256: str | None) -> None:
    """Raise RequestError where settings.json is not what a checkpoint says; older ones say nothing."""
    file = folder / "settings.json"
    if sha256 not in (None, sha256_of(read_json(file, "the settings of a run"))):
        raise RequestError(f"{file}: expected the settings that this run began with; these are others")


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings over the defaults of the shipped configs, of its own choice in each group."""
    top = _shipped("config.yaml")
    knobs = {key: top[key] for key in Settings.model_fields if key in top and key not in CHOSEN}
    completed = knobs | values
    for group, by in CHOSEN.items():
        section = values.get(group)
        if isinstance(section, dict):
            completed[group] = top.get(group, {}) | _shipped(f"{group}/{section.get(by)}.yaml") | section
    return completed


@cache
def _shipped(name: str) -> dict[str, Any]:
    """The values in a shipped config; none where there is no such file."""
    file = configs_folder() / name
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}


def open_run(run: str) -> Saved:
    """Open a run by its folder or `latest`.

    Raises:
        RequestError: it has no checkpoint yet, or its files are damaged.
    """
    folder = find(run)
    settings = settings_of(folder)
    if not (folder / "checkpoints" / "best.ckpt").exists():
        raise RequestError(f"{folder}: expected a run with a finished epoch; it has no checkpoint yet")
    state, about = read_state_dict(folder)
    check_settings(folder, about.get("settings"))
    preprocessing = Preprocessing.from_metadata(about)
    if preprocessing is None or "classes" not in about:
        raise RequestError(f"{folder}/checkpoints/frozen.safetensors: expected the run's classes in it")
    torch.manual_seed(settings.seed)
    network = build_model(settings.model, enum_of(settings.model, settings.weights))
    head = find_head(network)
    weights = [value for name, value in state.items() if name.startswith(f"{head}.") and value.dim() > 1]
    outputs = len(weights[-1])  # the head's last layer
    replace_head(network, head, outputs, hidden=settings.head_hidden, dropout=settings.head_dropout)
    own = network.state_dict()
    if strange := own.keys() - state.keys():
        raise RequestError(f"{folder}: expected the tensors of {settings.model}; {len(strange)} are missing")
    network.load_state_dict({name: state[name] for name in own})
    network.eval().to(memory_format=torch.channels_last)
    return Saved(
        folder,
        settings,
        network,
        head,
        outputs,
        tuple(json.loads(about["classes"])),
        preprocessing,
        read_summary(folder),
        about.get("data"),
    )
