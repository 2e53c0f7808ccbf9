"""The story of one run, from settings to summary."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune import processes, resuming
from finetune.atomic import linked, not_written, write_sealed
from finetune.config.schema import Settings
from finetune.errors import Interrupted, RunError
from finetune.inference.calibration import temperature_of
from finetune.inference.overlay import maps
from finetune.model.head import find_head
from finetune.prepare import Prepared, prepare
from finetune.report import folder as folders
from finetune.report import terminal
from finetune.report.page import write_report
from finetune.report.predictions import write_predictions
from finetune.report.tensorboard import Board, restore_log
from finetune.resuming import GoingOn, changed
from finetune.saved import Saved, settings_of
from finetune.say import Screen, say
from finetune.signals import Signal, signals
from finetune.summary import summarise, versions
from finetune.sweep.jobs import is_sweep
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.callbacks import Terminal
from finetune.training.checkpoint import save_frozen
from finetune.training.distributed import Place
from finetune.training.fit import Fitted, Options, fit
from finetune.training.learner import Job
from finetune.training.monitor import GradientMonitor


def run(settings: Settings, folder: Path, console: Console) -> dict[str, Any]:
    """Train as the settings say, into a new folder or on in an interrupted run's, and return the summary.

    Raises:
        RequestError: the request was wrong; found before training starts.
        RunError: the run failed or was interrupted; what it wrote before is kept.
    """
    if summary := _ended(settings, folder, console):
        return summary
    place: Place | None = None
    try:
        place = processes.place(settings)
        if place is None:
            return processes.launch(settings, folder, console.quiet)
        device = devices.accelerator(settings.trainer.accelerator)
        console = console if place.leads else Screen(quiet=True)
        alone = folders.one_writer(folder) if place.leads else nullcontext()
        with _told_how_to_resume(folder), distributed.joined(place, device), alone:
            if place.size == 1 and (summary := _ended(settings, folder, console)):
                return summary  # by another process, until a moment ago
            return run_prepared(_in_turn(settings, folder, console, place), console)
    except BaseException as error:
        if place is None or place.leads:
            folders.give_reason(folder, error)
        raise


def _ended(settings: Settings, folder: Path, console: Console) -> dict[str, Any] | None:
    """The summary of a run that is to be resumed and has ended; None where there is something to train."""
    summary = resuming.finished(settings, folder) if settings.resume else None
    if summary:
        text = f"{folder} has ended, after epoch {summary['epochs']}; nothing to do"
        say(console, "finished", text)
    return summary


def _in_turn(settings: Settings, folder: Path, console: Console, place: Place) -> Prepared:
    """Prepared by a machine's first process before the others, which then find everything computed."""
    if place.local:
        distributed.wait()
    prepared = prepare(settings, folder, console, place)
    if place.size > 1 and not place.local:
        distributed.wait()
    return prepared


def run_prepared(prepared: Prepared, console: Console) -> dict[str, Any]:
    """The same for a run that stands ready; a process that does not lead returns nothing."""
    board = start(prepared) if prepared.place.leads else None
    ready_at = time.perf_counter()
    fitted = train(prepared, board, console)
    if board is None or fitted is None:
        return {}
    return finish(prepared, board, fitted, time.perf_counter() - ready_at, console)


def resume(folder: Path, console: Console) -> dict[str, Any]:
    """Go on with the run in a folder, with the settings that it began with, and return the summary."""
    return run(settings_of(folder).model_copy(update={"resume": "auto"}), folder, console)


@contextmanager
def _told_how_to_resume(folder: Path) -> Iterator[None]:
    """Signals and errors of the system while a run works in its folder, as errors of ours."""
    code, reason = 0, ""
    try:
        with signals():
            yield
    except Signal as received:  # while preparing or finishing
        code, reason = 128 + received.number, f"interrupted by {signal.Signals(received.number).name}"
    except Interrupted as error:
        code, reason = error.exit_code, str(error)
    except OSError as error:
        raise RunError(not_written(folder, error)) from None
    if code:
        if (folder / "settings.json").exists():
            reason += f"; finetune resume {shlex.quote(str(folder))} goes on"
        raise Interrupted(reason, code)


def start(prepared: Prepared, like: Board | None = None, figures: bool = True) -> Board:
    """Write what is known before the first step: what is frozen, and the run's settings in TensorBoard.

    like: of a run with the same frozen part and pictures; the frozen part then is stored once for both.
    """
    folder, name = prepared.folder, "checkpoints/frozen.safetensors"
    kept = prepared.going_on and (folder / name).exists()  # and whole, as has been checked
    if not kept and (like is None or not linked(like.folder / name, folder / name)):
        save_frozen(folder / name, prepared.proof.tensors, prepared.origin["about"])
    started = _reopened(folder, prepared.going_on) if prepared.going_on else False
    board = Board(folder, figures)
    if not started:
        board.start(prepared.settings.model_dump(), prepared.model, prepared.ready.sample, like)
    return board


def _reopened(folder: Path, going_on: GoingOn) -> bool:
    """Make the curves what they were at the checkpoint; whether TensorBoard's has its beginning."""
    folders.reopen(folder, going_on.curves)
    started, whole = restore_log(folder, going_on.steps, going_on.curves)
    if not (started and whole):
        text = "damaged; the points of metrics.csv are written again, others that were lost are not"
        say(Screen(stderr=True), "note", f"{folder / 'tensorboard'}: {text}")
    return started


def train(prepared: Prepared, board: Board | None, console: Console) -> Fitted | None:
    """Train, and evaluate the test split with the best epoch; what is frozen is proven not to have moved."""
    settings, place = prepared.settings, prepared.place
    share = max(1, torch.get_num_threads() // place.here)  # never more threads than cores
    with devices.threads(1 if prepared.light else share), devices.freed_memory_kept():
        terminal.training_line(
            console,
            settings.epochs,
            settings.optimizer.model_dump(),
            prepared.device,
            prepared.precision,
            place.size,
        )
        if prepared.going_on:
            terminal.resume_lines(console, prepared.going_on.epochs, changed(prepared.going_on, versions()))
        options = Options(
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            accumulate_batches=settings.trainer.accumulate_batches,
            clip_norm=settings.trainer.clip_norm,
            device=prepared.device,
            precision=prepared.precision,
            place=place,
        )
        job = job_of(prepared, board)
        callbacks: list[Any] = []
        if board:
            batches = len(prepared.batches.train_dataloader())
            callbacks.append(Terminal(console, settings.epochs, batches))  # says so when all is kept
            if settings.monitor_gradients:
                callbacks.append(GradientMonitor(board.writer, console))
        path = prepared.going_on.path if prepared.going_on else None
        found = fit(prepared.classifier, prepared.batches, [job], options, callbacks, resume=path)
    prepared.proof.check_unchanged(prepared.model.network)
    return next((fitted for fitted in found if isinstance(fitted, Fitted)), None)


def job_of(prepared: Prepared, board: Board | None) -> Job:
    """What training writes of a run, and where."""
    return Job(
        prepared.folder,
        board.writer if board else None,
        frozen_sha256=prepared.proof.sha256,
        patience=prepared.settings.patience,
        origin={**prepared.origin, "versions": versions()},
    )


def finish(
    prepared: Prepared, board: Board, fitted: Fitted, training: float, console: Console
) -> dict[str, Any]:
    """Write what the run came to, after so many seconds of training, and return the summary."""
    total = time.perf_counter() - prepared.started
    timing = {"preparing": total - training, "training": training, "total": total}
    summary = summarise(prepared, fitted, timing)
    dataset = prepared.dataset
    test_labels = prepared.batches.labels[dataset.split["test"]]
    board.finish(summary, fitted.test_logits, test_labels, dataset.classes)
    answers = {"val": fitted.val_logits, "test": fitted.test_logits}
    with devices.threads(1):  # for so little work they would only wait for each other
        write_predictions(
            prepared.folder,
            dataset,
            answers,
            loss=prepared.settings.loss,
            temperature=temperature_of(summary),
        )
        summary["files"] = folders.digests(prepared.folder)
        if not is_sweep(prepared.folder.parent):
            write_report(prepared.folder, summary, dataset.images, partial(maps, _saved(prepared)))
    write_sealed(prepared.folder / "summary.json", summary)
    terminal.result_lines(console, summary, prepared.folder)
    return summary


def _saved(prepared: Prepared) -> Saved:
    """The run as it could be opened again, its model as it stands."""
    model, network = prepared.model, prepared.model.network.eval()
    head = model.head or find_head(network)
    return Saved(
        prepared.folder,
        prepared.settings,
        network,
        head,
        model.outputs,
        prepared.dataset.classes,
        model.preprocessing,
        None,
    )
