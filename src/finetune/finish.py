"""What is written of a run that has trained: summary, answers, report."""

from __future__ import annotations

import shutil
import time
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
from finetune.report.page import write_report
from finetune.report.predictions import write_predictions
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
    same = None if prepared.model.backbone_trains() else like
    if not (same and linked(same / folders.REFERENCE, folder / folders.REFERENCE)):
        with devices.threads(1 if build.is_light(prepared.settings, prepared.inputs) else None):
            head, device = as_opened(prepared).head, prepared.options.device
            board.project(*write_reference(folder, prepared.inputs, head, device), dataset)
    board.finish(summary, fitted.test_logits, test_labels, dataset.classes)
    answers = {"val": fitted.val_logits, "test": fitted.test_logits}
    with devices.threads(1):  # for so little work they would only wait for each other
        softmax, temperature = LOSSES[prepared.settings.loss].softmax, temperature_of(summary)
        write_predictions(folder, dataset, answers, softmax=softmax, temperature=temperature)
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
