"""What is written of a run that has trained: summary, answers, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from finetune import build
from finetune.atomic import linked
from finetune.choices.losses import LOSSES
from finetune.data.duplicates import labelled_otherwise, leaked
from finetune.evaluation.calibration import calibrate, fit_thresholds, temperature_of
from finetune.evaluation.familiar import write_reference
from finetune.evaluation.overlay import maps
from finetune.features.load import ModelInputs
from finetune.machine import versions
from finetune.model.parameters import count_parameters
from finetune.prepared import Prepared, as_opened
from finetune.report import terminal
from finetune.report.drawings import TILE, thumbnails
from finetune.report.page import write_report
from finetune.report.predictions import Prediction, write_predictions
from finetune.report.tensorboard import Board
from finetune.runs import folder as folders
from finetune.runs.summary import write_summary
from finetune.say import say
from finetune.training import device as devices
from finetune.training.fit import Fitted
from finetune.training.several import BESIDE, measure
from finetune.training.solved import SolvedClassifier


def finish(
    prepared: Prepared,
    board: Board,
    fitted: Fitted,
    training: float,
    console: Console,
    like: Path | None = None,
) -> dict[str, Any]:
    """Write what the run came to, after so many seconds of training, and return the summary.

    like: the folder of a job before it, whose head reads the same where the backbone does not train.
    """
    total = time.perf_counter() - prepared.started
    timing = {"preparing": total - training, "training": training, "total": total}
    summary, dataset, folder = summarise(prepared, fitted, timing), prepared.dataset, prepared.folder
    test_labels = prepared.batches.examples.labels[dataset.answered("test")]
    logits = {"val": fitted.val_logits, "test": fitted.test_logits}
    with devices.threads(1):  # for so little work they would only wait for each other
        softmax, temperature = LOSSES[prepared.settings.loss].softmax, temperature_of(summary)
        answers = write_predictions(folder, dataset, logits, softmax=softmax, temperature=temperature)
    same = None if prepared.model.backbone_trains() else like
    if not (same and linked(same / folders.REFERENCE, folder / folders.REFERENCE)):
        _show_images(prepared, board, answers, summary)
    board.finish(summary, fitted.test_logits, test_labels, dataset.classes)
    with devices.threads(1):
        summary["files"] = folders.digests(folder)
        if not (folders.sweep_of(folder) or folders.is_phase(folder)):
            write_report(folder, summary, dataset.images, partial(maps, as_opened(prepared)))
    write_summary(folder, summary)
    if "tensorboard" not in prepared.settings.logger:
        shutil.rmtree(folder / "tensorboard")
    if prepared.settings.fast_dev_run:
        say(console, "done", "every part ran, on one batch of each side; nothing is kept (fast_dev_run)")
    else:
        terminal.result_lines(console, summary, folder)
    return summary


def _show_images(prepared: Prepared, board: Board, answers: Sequence[Prediction], summary: Any) -> None:
    """Keep what the head reads of the images, show it in TensorBoard, and validation's answers."""
    data, how, head = prepared.dataset, prepared.model.preprocessing, as_opened(prepared).head
    with devices.threads(1 if build.is_light(prepared.settings, prepared.inputs) else None):
        read = write_reference(prepared.folder, prepared.inputs, head, prepared.options.device)
        if "tensorboard" not in prepared.settings.logger:
            return
        # To decode as many photographs once more may take longer than to train a head.
        seconds = max(0.8, summary["timing"]["total"] / 20)
        tiles = thumbnails([data.images[row] for row in read[-1]], how, TILE, seconds)
        board.project(*read, data, tiles)
    if held := [one for one in answers if one.split == "val"]:
        images = [data.images[row] for row in data.answered("val")]
        board.show_answers(held, images, how, summary["steps"])


def _data(inputs: ModelInputs) -> dict[str, Any]:
    dataset = inputs.dataset
    groups = dataset.together(dataset.answered("test"))
    return {
        "name": dataset.name,
        **dataset.counts(),
        "to_train": dataset.to_train(),
        "fingerprint": dataset.fingerprint(),
        "skipped": len(inputs.bad),
        "repaired": len(inputs.repaired),
        "ignored_files": dataset.passed_over.total(),
        "own_split": dataset.own_split,
        **({} if groups is None else {"test_groups": len(np.unique(groups))}),
        "labelled_otherwise": len(labelled_otherwise(dataset)),
        "leaked": {side: len(rows) for side, rows in leaked(dataset).items()},
    }


def _solution(classifier: Any, iterations: int) -> dict[str, Any] | None:
    """The strength of a solved head's penalty, and the path that it was chosen on."""
    if not isinstance(classifier, SolvedClassifier):
        return None
    names = ("strength", "log_loss", "accuracy")
    path = [{name: getattr(point, name) for name in names} for point in classifier.points]
    found = {"weight_decay": classifier.strength, "gradient": classifier.gradient, "path": path}
    return {**found, "iterations": iterations}


def _held_out(prepared: Prepared, fitted: Fitted) -> tuple[Tensor | None, Tensor]:
    """Logits and labels of images that were not trained on: for a refitted head those of the folds."""
    settings, dataset, classifier = prepared.settings, prepared.dataset, prepared.classifier
    labels = prepared.batches.examples.labels
    again = settings.refit or fitted.val_logits is None
    found = classifier.held_out if isinstance(classifier, SolvedClassifier) and again else None
    if found:
        rows, logits = found
        return logits.cpu(), labels[dataset.split["train"]][rows]
    return fitted.val_logits, labels[dataset.split["val"]]


def _measure_answers(prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
    """Calibration and decision thresholds; what is measured of the answers goes beside the other figures."""
    dataset, entry = prepared.dataset, LOSSES[prepared.settings.loss]
    labels, several = prepared.batches.examples.labels, dataset.multi_label and not entry.softmax
    tested = (fitted.test_logits, labels[dataset.answered("test")])
    held_out = tested if fitted.folds else _held_out(prepared, fitted)
    calibration = thresholds = None
    if entry.calibrates:
        calibration = calibrate(held_out, tested)
    if several and held_out[0] is not None:
        thresholds = fit_thresholds(held_out[0], held_out[1], dataset.classes)
    how = {"softmax": entry.softmax, "temperature": temperature_of({"calibration": calibration})}
    sides = {"val": (fitted.val, fitted.val_logits), "test": (fitted.test, fitted.test_logits)}
    for side, (measures, logits) in sides.items() if several or labels.ndim == 1 else ():
        if measures and logits is not None:
            own, groups = labels[rows := dataset.answered(side)], dataset.together(rows)
            chosen = None if fitted.folds else thresholds  # which were chosen by these very answers
            found = measure(logits, own, dataset.classes, thresholds=chosen, groups=groups, **how)
            measures |= {name: found[name] for name in BESIDE if found.get(name) is not None}
    if calibration and fitted.folds:
        calibration["measured_on"] = "the answers that it was fitted on"
    if fitted.folds and fitted.test:
        own = fitted.test.get("intervals", {})
        for name, one in fitted.folds["test"].items():  # folds that agree by chance say little
            ends = [*one["interval"], *own.get(name, ())]
            one["interval"] = own[name] = [min(ends), max(ends)]
        fitted.test["intervals"] = own
    return {"calibration": calibration, "thresholds": thresholds}


def summarise(prepared: Prepared, fitted: Fitted, timing: dict[str, float]) -> dict[str, Any]:
    """The summary of a finished run whose proof held; times in seconds."""
    settings, model, inputs = prepared.settings, prepared.model, prepared.inputs
    dataset, proof = inputs.dataset, prepared.proof
    measured = _measure_answers(prepared, fitted)
    return {
        "status": "finished",
        "val": fitted.val,
        "test": fitted.test,
        **measured,
        "best": settings.best,
        "folds": fitted.folds,
        "refit": len(dataset.split["train"]) + len(dataset.split["val"]) if settings.refit else None,
        "solution": _solution(prepared.classifier, fitted.steps),
        "best_epoch": fitted.best_epoch,
        "averaged": fitted.averaged,
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "model": model.name,
        "weights": {
            "requested": model.weights.requested,
            "used": model.weights.used,
            "sha256": model.weights.sha256,
            "notes": model.weights.notes,
        },
        "freeze": settings.freeze,
        "head": settings.head,
        "classes": list(dataset.classes),
        "parameters": count_parameters(model.network, prepared.classifier.idle or ()),
        "frozen_proof": {
            "identical": True,
            "tensors": len(proof.each),
            "sha256": proof.sha256,
            "each": proof.each,
        },
        "data": _data(inputs),
        "preprocessing": vars(model.preprocessing),
        "augment": inputs.plan.augment,
        "boundary": {"share": inputs.plan.share, "why": inputs.plan.why},
        "features": inputs.features,
        "batchnorm": inputs.batchnorm,
        "timing": timing,
        "device": prepared.options.device,
        "precision": prepared.options.precision,
        "seed": settings.seed,
        "overrides": prepared.origin.get("overrides"),
        "versions": versions(),
    }
