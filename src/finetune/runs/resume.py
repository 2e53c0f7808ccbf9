"""What an interrupted run must find again to go on: settings, data, what is frozen, what `auto` came to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from finetune.atomic import holds, sha256_of
from finetune.cells import read_table, table_of
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.errors import RequestError, RunError, counted
from finetune.features.batchnorm import Statistics
from finetune.features.load import ModelInputs
from finetune.model.assemble import Model
from finetune.model.statedict import read_frozen
from finetune.runs.epochs import differs_in_epochs
from finetune.runs.folder import sweep_of
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary
from finetune.runs.sweeps import counts_epochs, overrides_of
from finetune.training.checkpoint import forget_refitted, newest
from finetune.training.fit import Options

# What a checkpoint says of where it came from, and what each differs in.
TOLD = {
    "model": "model",
    "outputs": "head: its number of outputs",
    "classes": "data: the classes",
    "about": "data.image_size: how images are prepared",
    "data": "data: the images, their labels or their split (SHA-256)",
    "weights": "weights: what is loaded before training (SHA-256)",
    "skipped": "data.bad_images: the number of images left out",
    "frozen": "freeze: what is frozen (SHA-256)",
    "device": "trainer: the device",
    "precision": "precision: of training",
    "form": "precision: of the features",
    "kept": "cache: whether features are used",
    "augment": "data.augment",
    "compiled": "compile",
    "processes": "trainer.devices: the number of processes",
}

# What a checkpoint holds, and it says of where it came from, whichever version wrote it.
HELD = {"global_step": int, "origin": dict, "state_dict": dict, "optimizer_states": list}
ORIGIN = {"classes": list, "device": str, "kept": bool, "augment": str, "compiled": bool, "versions": dict}


@dataclass(frozen=True)
class ResumeState:
    """Where an interrupted run goes on: its checkpoint, after so many whole epochs and optimiser steps.

    origin: what the checkpoint says of where it came from, as `found` and `chosen` give it.
    together: whether it is of a sweep's job that trained together with others.
    curves: metrics.csv as it was then.
    """

    path: Path
    epochs: int
    steps: int
    origin: dict[str, Any]
    together: bool = False
    curves: str = ""


def find_resume_state(settings: Settings, folder: Path) -> ResumeState | None:
    """Where `resume=auto` goes on in a folder; None where no epoch was finished, so that it starts.

    RequestError: the settings are not the run's, or its checkpoint is damaged or of another kind.
    """
    resume_state = read_resume_state(folder)
    if resume_state is None:
        return None
    if resume_state.together:
        sweep, job = (shlex.quote(str(path)) for path in (sweep_of(folder) or folder.parent, folder))
        raise RequestError(
            f"{resume_state.path}: expected the checkpoint of a run that trained by itself; finetune resume"
            f" {sweep} goes on with its sweep, and weights={job} starts a new run from its weights"
        )
    differs_in_epochs(settings, folder)
    return resume_state


def read_resume_state(folder: Path) -> ResumeState | None:
    """Where a run, or a sweep's job, was interrupted; None where no epoch was finished.

    RequestError: its files are damaged or another run's, or its checkpoint is nothing to go on from.
    """
    try:
        checkpoint = newest(folder)
    except RunError as error:
        raise RequestError(str(error)) from None
    if checkpoint is None:
        return None
    if (read_summary(folder) or {}).get("status") != "finished":  # else more epochs are asked for
        forget_refitted(folder)
    path, content = checkpoint
    together = "together" in content
    kinds = HELD | ({"together": dict} if together else {"loops": dict, "callbacks": dict})
    told = holds(content, kinds) and holds(content["origin"], ORIGIN) and content["epoch"] >= 0
    if not (told and str(content.get("curves") or "epoch,").startswith("epoch,")):
        raise RequestError(
            f"{path}: expected a checkpoint that says how to go on; weights={shlex.quote(str(folder))} starts"
            " a new run from its weights"
        )
    read_settings(folder, content["origin"].get("settings"))
    frozen = path.with_name("frozen.safetensors")
    try:
        if frozen.exists():  # else the run writes it again
            read_frozen(frozen, content)
    except RequestError as error:
        raise RequestError(f"{error}; without it the run writes it again") from None
    epochs = content["epoch"] + 1
    curves = content.get("curves") or _table_until(folder / "metrics.csv", epochs)
    return ResumeState(path, epochs, content["global_step"], content["origin"], together, curves)


def _table_until(file: Path, epochs: int) -> str:
    """metrics.csv until after an epoch; the first version's checkpoints do not hold it."""
    rows = read_table(file)[:epochs]
    if not rows:
        return ""
    if not (len(rows) == epochs and counts_epochs(rows)):
        wanted = f"expected numbers for each of {counted(epochs, 'epoch')}"
        raise RequestError(f"{file}: {wanted}; without it the run goes on")
    return table_of([[*rows[0]], *(row.values() for row in rows)]).decode()


def as_decided(settings: Settings, resume_state: ResumeState) -> Settings:
    """The settings with what `auto` came to when the run began, where that can be asked for."""
    origin = resume_state.origin
    device = "cpu" if origin["device"] == "cpu" else "gpu"
    return settings.model_copy(
        update={
            "cache": settings.cache if origin["kept"] else "none",
            "data": settings.data.model_copy(update={"augment": origin["augment"]}),
            "trainer": settings.trainer.model_copy(update={"accelerator": device}),
        }
    )


def adapted_before(resume_state: ResumeState | None) -> Statistics | None:
    """The statistics that a run's frozen BatchNorm layers had, from what it stored of all that is frozen."""
    if resume_state is None or not (batchnorm := resume_state.origin.get("batchnorm")):
        return None
    file = resume_state.path.with_name("frozen.safetensors")  # where it lacks, they are found once more
    return Statistics(load_file(file), batchnorm["images"], batchnorm) if file.exists() else None


def origin_of_request(folder: Path, settings: Settings, resume_state: ResumeState | None) -> dict[str, Any]:
    """What a run began with: the SHA-256 of its settings and, where there are any, Hydra's overrides."""
    if resume_state:
        return {
            key: resume_state.origin[key] for key in ("settings", "overrides") if key in resume_state.origin
        }
    return {"settings": sha256_of(settings.model_dump()), "overrides": own_overrides(folder)}


def own_overrides(folder: Path) -> list[str] | None:
    """The command line of a run; None from Python, and of a run's phases."""
    return overrides_of(folder) if (folder / ".hydra" / "overrides.yaml").exists() else None


def origin_of_data(model: Model, dataset: Dataset) -> dict[str, Any]:
    """What is known of a run's origin before any image is decoded."""
    return {
        "model": model.name,
        "outputs": model.outputs,
        "classes": list(dataset.classes),
        "about": {**model.preprocessing.metadata(), "classes": json.dumps(dataset.classes)},
        "data": dataset.fingerprint(),
        "weights": model.weights.sha256,
    }


def origin_of_choices(inputs: ModelInputs, frozen: str, options: Options) -> dict[str, Any]:
    """What is known of it when everything stands ready; frozen: SHA-256 of what is frozen."""
    return {
        "skipped": len(inputs.bad),
        "frozen": frozen,
        "device": options.device,
        "precision": options.precision,
        "form": inputs.features and inputs.features["form"],
        "kept": inputs.features is not None,
        "parts": inputs.inputs.blocks.parts if inputs.inputs.blocks else 1,
        "batchnorm": inputs.batchnorm,
        "augment": inputs.plan.augment,
        "compiled": options.compiled,
        "processes": options.rank.world_size,
    }


def check_origin(resume_state: ResumeState | None, now: Mapping[str, Any]) -> None:
    """Raise RequestError, naming the difference, where a run would go on with what it did not begin with."""
    if resume_state is None:
        return
    for key in filter(now.__contains__, TOLD):
        before, after = resume_state.origin.get(key, now[key]), now[key]  # an older version told less
        if before != after:
            folder = shlex.quote(str(resume_state.path.parents[1]))
            raise RequestError(
                f"{TOLD[key]} differs from the run's beginning: {_short(before)} then, {_short(after)} now;"
                f" expected the same to go on, while weights={folder} starts a new run from its weights"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}…"


def changed_versions(resume_state: ResumeState, now: Mapping[str, str]) -> str | None:
    """What to say where the versions of what decides the numbers are others."""
    before = resume_state.origin["versions"]
    names = [f"{name} {before[name]} then, {now[name]} now" for name in now if before.get(name) != now[name]]
    return f"numbers may differ: {'; '.join(names)}" if names else None
