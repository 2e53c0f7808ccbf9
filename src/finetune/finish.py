"""What is written of a run that has trained: summary, answers, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune import build
from finetune.atomic import linked
from finetune.choices.losses import LOSSES
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.familiar import write_reference
from finetune.evaluation.overlay import maps
from finetune.prepared import Prepared, as_opened
from finetune.report import terminal
from finetune.report.drawings import TILE, thumbnails
from finetune.report.page import write_report
from finetune.report.predictions import Prediction, write_predictions
from finetune.report.tensorboard import Board
from finetune.runs import folder as folders
from finetune.runs.folder import is_sweep
from finetune.runs.summary import write_summary
from finetune.say import say
from finetune.summary import summarise
from finetune.training import device as devices
from finetune.training.fit import Fitted


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
        if not (is_sweep(folder.parent) or folders.is_phase(folder)):
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
