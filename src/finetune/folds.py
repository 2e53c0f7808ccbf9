"""`data.folds`: a model for each fold of the images, then one that is trained on all of them as was best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from statistics import fmean, median_low, stdev
from typing import Any

import torch
from rich.console import Console
from scipy.special import stdtrit
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS

from finetune.build import build_batches
from finetune.heads import take_statistics
from finetune.prepared import Prepared, start_log
from finetune.refit import State, fresh_classifier, initial_state
from finetune.report import terminal
from finetune.report.tensorboard import Board
from finetune.runs import folder as folders
from finetune.runs import resume as resuming
from finetune.say import Screen, say
from finetune.training.callbacks import close_log
from finetune.training.fit import Fitted
from finetune.training.several import per_label
from finetune.training.solved import SolvedClassifier

QUIET = Screen(quiet=True)


def train_folds(
    prepared: Prepared, board: Board, console: Console, train: Callable[..., Any]
) -> tuple[Prepared, dict[str, Any]]:
    """Train and test a model for each fold, in a folder of its own, on what was prepared for all of them.

    Those that an interrupted run has trained are only tested again. train: as of an ordinary run.
    Returns: the run for all images, its model as it was before, with the median of the epochs or strengths
    that were best; and, by their names, the fields of its `Fitted` that only the folds can tell.
    """
    initial, each, strengths = initial_state(prepared), list[Fitted](), list[float]()
    for fold in range(prepared.settings.data.folds or 0):
        one = _prepare_fold(prepared, initial, fold)
        log = start_log(one, board.folder)
        each.append(train(one, log, QUIET))
        close_log(log.writer, STATUS_SUCCESS)
        if isinstance(one.classifier, SolvedClassifier):
            strengths.append(one.classifier.strength)
        say(console, "fold", f"{fold}: {terminal.scores(each[-1].test or {})}")
    settings = prepared.settings.model_copy(update={"refit": False, "patience": None})
    if strengths:
        optimizer = settings.optimizer.model_copy(update={"weight_decay": median_low(strengths)})
        settings = settings.model_copy(update={"optimizer": optimizer})
    options = replace(prepared.options, epochs=median_low(one.best_epoch for one in each))
    whole = replace(prepared, settings=settings, options=options)
    return replace(whole, classifier=fresh_classifier(whole, initial)), _measured(prepared, each)


def _prepare_fold(prepared: Prepared, initial: State, fold: int) -> Prepared:
    """A fold's run, in a folder that has been begun, with the model as it was before any training."""
    asked, folder = prepared.settings, prepared.folder / folders.FOLDS / str(fold)
    data = asked.data.model_copy(update={"fold": fold})
    settings = asked.model_copy(update={"data": data, "resume": None})
    inputs = replace(prepared.inputs, dataset=prepared.dataset.in_fold(fold, data.val_fraction))
    state = resuming.read_resume_state(folder) if asked.resume else None
    origin = prepared.origin | resuming.origin_of_request(folder, settings, state)
    origin["data"] = inputs.dataset.fingerprint()
    resuming.check_origin(state, origin)
    if state is None:
        folders.begin(folder, settings.model_dump())
        (folder / "checkpoints").mkdir(exist_ok=True)
    batches = build_batches(settings, inputs, prepared.model.outputs)
    one = replace(prepared, settings=settings, folder=folder, inputs=inputs, batches=batches, origin=origin)
    one = replace(one, classifier=fresh_classifier(one, initial), resume_state=state)
    take_statistics(one.model, inputs, one.options.device, console=QUIET)
    return one


def _measured(prepared: Prepared, each: list[Fitted]) -> dict[str, Any]:
    """The means of the folds' metrics, all that is known of them, and an answer for every image."""
    logits = torch.empty(len(prepared.dataset.images), prepared.model.outputs)
    for fold, one in enumerate(each):
        assert one.test_logits is not None  # as no fold is empty
        logits[torch.from_numpy(prepared.dataset.folds == fold)] = one.test_logits
    spreads = {"val": _spreads([one.val for one in each]), "test": _spreads([one.test for one in each])}
    means = {side: {key: one["mean"] for key, one in found.items()} for side, found in spreads.items()}
    labels: Any = prepared.classifier.labels
    if labels:
        means["test"]["per_label"] = per_label(logits, prepared.batches.examples.labels, labels)
    told = {"number": len(each), "best_epochs": [one.best_epoch for one in each], **spreads}
    return {"val": means["val"] or None, "test": means["test"], "test_logits": logits, "folds": told}


def _spreads(each: list[Any]) -> dict[str, Any]:
    """Of each metric the mean over folds, its standard error, and the 95 % interval of Student's t.

    As folds share most of their training images, it tends to be too narrow. Of two or more measured.
    """
    spreads, measured = dict[str, Any](), [one for one in each if one]
    quantile = float(stdtrit(len(measured) - 1, 0.975))
    for name in measured[0] if len(measured) > 1 else ():
        if name != "per_label":
            values = [one[name] for one in measured]
            mean, error = fmean(values), stdev(values) / len(values) ** 0.5
            least, most = 0.0 if min(values) >= 0 else -inf, inf if name == "loss" else 1.0
            ends = [max(least, mean - quantile * error), min(most, mean + quantile * error)]
            spreads[name] = {"mean": mean, "standard_error": error, "interval": ends, "each": values}
    return spreads
