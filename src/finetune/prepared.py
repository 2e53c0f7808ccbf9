"""A run that stands ready to train, and what is written of it before its first step."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.atomic import linked, write_atomically, write_sealed
from finetune.config.schema import Settings
from finetune.data.dataset import Dataset
from finetune.data.module import Batches
from finetune.features.load import ModelInputs, sample_of
from finetune.machine import versions
from finetune.model.assemble import Model
from finetune.model.hashing import Proof
from finetune.model.head import find_head
from finetune.report.tensorboard import Board, restore_log
from finetune.runs.open import SEEN, Saved
from finetune.runs.resume import ResumeState
from finetune.say import Screen, say
from finetune.training.best import Best
from finetune.training.checkpoint import save_frozen
from finetune.training.classifier import Classifier
from finetune.training.fit import Options
from finetune.training.learner import Job


@dataclass(frozen=True)
class Prepared:
    """A run that stands ready to train; its folder has been begun.

    started: by `time.perf_counter()`. origin: what a checkpoint must know to be resumed from.
    resume_state: where an interrupted run goes on.
    """

    settings: Settings
    folder: Path
    model: Model
    inputs: ModelInputs
    batches: Batches
    classifier: Classifier
    options: Options
    proof: Proof
    started: float
    origin: dict[str, Any]
    resume_state: ResumeState | None = None

    @property
    def dataset(self) -> Dataset:
        """The images in use: without those that were left out."""
        return self.inputs.dataset


def keep_scale(dataset: Dataset, resume_state: ResumeState | None) -> Dataset:
    """The data set with the scale of brightness that an interrupted run began with; older ones have none."""
    if resume_state is None:
        return dataset
    return replace(
        dataset, brightness=json.loads(resume_state.origin.get("about", {}).get("brightness", "{}"))
    )


def start_log(prepared: Prepared, like: Path | None = None) -> Board:
    """Write what is known before the first step: what is frozen, and the run's settings in TensorBoard.

    like: the folder of a run with the same frozen part and images, which are stored once for both.
    """
    folder, name, state = prepared.folder, "checkpoints/frozen.safetensors", prepared.resume_state
    kept = state and (folder / name).exists()  # and whole, as has been checked
    if not kept and (like is None or not linked(like / name, folder / name)):
        save_frozen(folder / name, prepared.proof.tensors, prepared.origin["about"])
    one_fold = prepared.settings.data.fold is not None  # which has sides of its own
    if one_fold or like is None or not linked(like / SEEN, folder / SEEN):
        data, learned = prepared.dataset, ("train", "val")
        sides = {side: " ".join(data.digests[row][:16] for row in data.split[side]) for side in learned}
        write_sealed(folder / SEEN, sides)
    if state:
        if state.curves:
            write_atomically(folder / "metrics.csv", state.curves.encode())
        restored = restore_log(folder, state.steps, state.curves)
        if not restored and "tensorboard" in prepared.settings.logger:
            text = "damaged; the points of metrics.csv are written again, others that were lost are not"
            say(Screen(stderr=True), "note", f"{folder / 'tensorboard'}: {text}")
    board, data, sample = Board(folder), prepared.dataset, prepared.inputs.sample if like is None else None
    captions = [str(data.label_of(row)) if data.to_train() else "" for row in sample_of(data)]
    board.start(prepared.settings.model_dump(), prepared.model, sample, captions)
    return board


def job_of(prepared: Prepared, board: Board | None) -> Job:
    """What training writes of a run, and where."""
    state = prepared.resume_state
    return Job(
        prepared.folder,
        board.writer if board else None,
        frozen_sha256=prepared.proof.sha256,
        patience=prepared.settings.patience,
        origin={**prepared.origin, "versions": versions()},
        curves=state.curves.splitlines(keepends=True) if state else [],
        best=Best(prepared.settings.best),
    )


def as_opened(prepared: Prepared) -> Saved:
    """The run as it could be opened again, its model as it stands."""
    model, network = prepared.model, prepared.model.network.eval()
    return Saved(
        folder=prepared.folder,
        settings=prepared.settings,
        network=network,
        head=model.head or find_head(network),
        outputs=model.outputs,
        classes=prepared.dataset.classes,
        preprocessing=model.preprocessing,
        summary=None,
    )
