"""settings.json of a run, read back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from finetune.atomic import read_json, sha256_of
from finetune.choices.given import PYTHON
from finetune.config.messages import validate
from finetune.config.schema import Settings
from finetune.config.shipped import shipped
from finetune.errors import RequestError

# What runs did that are older than a setting and so lack it; without an entry, what its default says.
BEFORE = {"best": "accuracy", "standardize": False}
LATER = "epochs_later"  # in settings.json: how many a run was resumed for, time after time
PLUGGED = ("loss", "schedule", "data.source", "data.augment", "optimizer.name", "callbacks", "logger")
CHOSEN = {"optimizer": "name", "data": "source", "trainer": "accelerator"}  # what tells a group's chosen file


def read_settings(folder: Path, sha256: str | None = None) -> Settings:
    """A run's settings, with the epochs last asked for; one that did not exist yet has its default.

    sha256: of the settings, as a checkpoint of the run has it; those of older versions have none.
    RequestError: the file is damaged, has a setting that there is not, or is another run's.
    """
    file = folder / "settings.json"
    way = f"weights={shlex.quote(str(folder))} starts a new run from its weights"
    values = read_json(file, "the settings of a run", way=way)
    later = values.pop(LATER, None)  # a checkpoint knows what the run began with
    if sha256 not in (None, sha256_of(values)):
        raise RequestError(f"{file}: expected the settings that this run began with; these are others; {way}")
    if isinstance(later, list) and later:
        values["epochs"] = later[-1]
    try:
        return validate(completed(values))
    except RequestError as error:
        plugin = "; of a plugin, with --plugin MODULE" if str(error).partition("=")[0] in PLUGGED else ""
        raise RequestError(f"{file}: {error}{plugin}") from None


def resumed_by(folder: Path) -> str:
    """What resumes a run that was interrupted."""
    file = folder / "settings.json"
    if file.exists() and f'"{PYTHON}' in file.read_text(encoding="utf-8"):
        return f"finetune.fit with the same objects, folder={str(folder)!r} and resume='auto'"
    return f"finetune resume {shlex.quote(str(folder))}"


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings over what holds where it lacks one: the defaults of the shipped configs, mostly."""
    top = shipped("config.yaml")
    known = {key: top[key] for key in Settings.model_fields if key in top and key not in CHOSEN}
    completed = known | BEFORE | values
    for group, by in CHOSEN.items():
        section = values.get(group)
        if isinstance(section, dict):
            completed[group] = top.get(group, {}) | shipped(f"{group}/{section.get(by)}.yaml") | section
    return completed
