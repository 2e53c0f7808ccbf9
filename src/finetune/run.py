"""The story of one run, from settings to summary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from finetune import build, workers
from finetune.choices.callbacks import CALLBACKS, LOGGERS, make
from finetune.config.schema import Settings, flat
from finetune.data.dataset import Dataset
from finetune.demands import refuse_broken, refuse_folds, refuse_untrainable
from finetune.fill import load_in_turn
from finetune.finish import finish
from finetune.folds import train_folds
from finetune.heads import standardize
from finetune.learners import build_classifier
from finetune.machine import versions
from finetune.model.assemble import Model
from finetune.model.hashing import Proof
from finetune.phases import run_phases
from finetune.prepared import Prepared, job_of, keep_scale, start_log
from finetune.refit import choosing_batches, initial_state, refit_alone
from finetune.report import terminal
from finetune.report.tensorboard import Board
from finetune.runs import epochs
from finetune.runs import folder as folders
from finetune.runs import resume as resuming
from finetune.runs.resume import ResumeState
from finetune.runs.summary import read_summary
from finetune.say import Screen, kept, progress, say
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.averages import Averages
from finetune.training.callbacks import BoardLogger, Terminal
from finetune.training.distributed import Rank
from finetune.training.fit import Fitted, Options, fit
from finetune.training.monitor import GradientMonitor


def run(settings: Settings, folder: Path, console: Screen) -> dict[str, Any]:
    """Train as the settings say, into a new folder or on in an interrupted run's, and return the summary.

    RequestError: the request was wrong; found before training starts.
    RunError: the run failed or was interrupted; what it wrote before is kept.
    """
    if summary := _ended(settings, folder, console):
        return summary
    rank: Rank | None = None
    briefly = ExitStack()
    try:
        rank = distributed.find_rank(workers.count(settings), settings.trainer.nodes)
        if settings.fast_dev_run and (rank is None or rank.world_size == 1):
            folder = Path(briefly.enter_context(TemporaryDirectory())) / "run"
        if rank is None:
            return workers.launch(settings, folder, console.quiet)
        options = build.build_options(settings, rank)
        console = console if rank.is_main else Screen(quiet=True)
        alone = folders.one_writer(folder) if rank.is_main else nullcontext()
        log = kept(console, folder / folders.LOG if rank.is_main else Path(os.devnull))
        with folders.interruptible(folder), distributed.joined(rank, options.device), alone, log:
            if rank.world_size == 1 and (summary := _ended(settings, folder, console)):
                return summary  # by another process, until a moment ago
            if settings.phased:
                one = partial(_train_phase, rank=rank, console=console)
                return run_phases(settings, folder, console, train=one, leads=rank.is_main)
            return run_prepared(prepare(settings, folder, console, options), console)
    except BaseException as error:
        if rank is None or rank.is_main:
            folders.give_reason(folder, error)
        raise
    finally:
        briefly.close()


def _ended(settings: Settings, folder: Path, console: Console) -> dict[str, Any] | None:
    """The summary of a run that is to be resumed and has ended; None where there is something to train."""
    summary = read_summary(folder) if settings.resume else None
    if summary is None or summary["status"] != "finished" or epochs.differs_in_epochs(settings, folder):
        return None
    say(console, "finished", f"{folder} has ended, after epoch {summary['epochs']}; nothing to do")
    return summary


def _train_phase(
    settings: Settings, folder: Path, ready: Callable[[Prepared], bool], *, rank: Rank, console: Console
) -> dict[str, Any]:
    prepared = prepare(settings, folder, console, build.build_options(settings, rank))
    return run_prepared(prepared, console) if ready(prepared) else {}


def prepare(
    settings: Settings, folder: Path, console: Console, options: Options, *, state: ResumeState | None = None
) -> Prepared:
    """Find data and model, compute what is constant, and begin the run's folder; or raise RequestError.

    options: as `build_options` makes them; of processes that train together only the first one writes.
    state: where a job that trained together with others resumes.
    """
    started, asked, writes = time.perf_counter(), settings, options.rank.is_main
    state = resuming.find_resume_state(settings, folder) if settings.resume else state
    if state:  # as an interrupted run decided; a new run must have a folder of its own
        settings = resuming.as_decided(settings, state)
        options = build.build_options(settings, options.rank)
    elif writes and not settings.resume:
        folders.refuse_used(folder)
    with distributed.one_after_the_other(options.rank):  # the first one hashes the images
        model, dataset = _find_model_and_data(settings, state, console, folders.phase_before(folder))
    origin = resuming.origin_of_data(model, dataset)
    resuming.check_origin(state, origin)
    if writes and not state:
        folders.begin(folder, settings.model_dump())
    terminal.model_lines(console, model, settings, len(dataset.classes))
    inputs = load_in_turn(settings, dataset, model, options, console=console, state=state)
    refuse_broken(settings, inputs, dataset, folder if writes else None)
    refuse_folds(settings, inputs.dataset)
    standardize(settings, model, inputs, options.device, console=console)
    batches = build.build_batches(settings, inputs, model.outputs, options.rank.world_size)
    terminal.input_lines(console, inputs, model, settings.class_weights)
    options = build.adapt_options(options, settings, inputs, state.origin["compiled"] if state else None)
    proof = Proof(model.network, model.frozen)
    origin |= resuming.origin_of_request(folder, asked, state)
    origin |= resuming.origin_of_choices(inputs, proof.sha256, options)
    resuming.check_origin(state, origin)
    if writes:
        epochs.note_epochs(asked, folder, console)
        if note := folders.start(folder, inputs.bad, latest=not settings.fast_dev_run):
            say(console, "note", note)
    return Prepared(
        settings=settings,
        folder=folder,
        model=model,
        inputs=inputs,
        batches=batches,
        classifier=build_classifier(settings, model, inputs, batches, compiled=options.compiled),
        options=options,
        proof=proof,
        started=started,
        origin=origin,
        resume_state=state,
    )


def _find_model_and_data(
    settings: Settings, resume_state: ResumeState | None, console: Console, start: Path | None
) -> tuple[Model, Dataset]:
    """The model, and the data set with its classes numbered as the model's outputs are."""
    dataset = keep_scale(build.find_data(settings, partial(progress, console)), resume_state)
    model = build.make_model(settings, dataset, start)
    dataset = dataset.numbered_as(resume_state.origin["classes"] if resume_state else model.classes)
    refuse_untrainable(settings, model, dataset)
    if start and not settings.fast_dev_run:  # which has a batch of images, as large as the phase's
        now = {"data": dataset.fingerprint(), "classes": list(dataset.classes)}
        resuming.check_origin(resuming.read_resume_state(start), now)
    return model, dataset


def run_prepared(prepared: Prepared, console: Console, like: Path | None = None) -> dict[str, Any]:
    """Train and evaluate a run that stands ready; a process that does not lead returns nothing.

    like: the folder of a job before it with the same frozen part and images.
    """
    board = start_log(prepared, like) if prepared.options.rank.is_main else None
    measured: dict[str, Any] = {}
    ready_at = time.perf_counter()
    with board or nullcontext():
        if board and prepared.settings.folded:
            prepared, measured = train_folds(prepared, board, console, train)
        fitted = train(prepared, board, console)
        if board is None or fitted is None:
            return {}
        fitted, training = replace(fitted, **measured), time.perf_counter() - ready_at
        return finish(prepared, board, fitted, training=training, console=console, like=like)


def train(prepared: Prepared, board: Board | None, console: Console) -> Fitted | None:
    """Train, and evaluate the test split with the best epoch; what is frozen is proven not to have moved."""
    settings, options, state = prepared.settings, prepared.options, prepared.resume_state
    share = max(1, torch.get_num_threads() // options.rank.local_world_size)  # never more threads than cores
    light = build.is_light(settings, prepared.inputs)
    with devices.threads(1 if light else share), devices.freed_memory_kept():
        terminal.training_line(console, settings.optimizer.model_dump(), options)
        if state:
            terminal.resume_lines(console, state.epochs, resuming.changed_versions(state, versions()))
        callbacks = make("callbacks", CALLBACKS, settings.callbacks, prepared.folder)
        callbacks += [Averages(settings.ema)] if settings.ema and not build.solves(settings) else []
        loggers = make("logger", LOGGERS, settings.logger, prepared.folder)
        for logger in loggers:
            logger.log_hyperparams(flat(settings.model_dump()))
        if settings.callbacks:  # which may ask for a logger
            loggers.append(BoardLogger(board.writer if board else None, prepared.classifier))
        if board:
            batches = len(prepared.batches.train_dataloader())
            callbacks.append(Terminal(console, options.epochs, batches))
            if settings.monitor_gradients and not build.solves(settings):
                callbacks.append(GradientMonitor(board.writer, console))
        options = replace(options, loggers=loggers)
        job, resume = job_of(prepared, board), [state.path] if state else []
        initial, chosen_on = initial_state(prepared), choosing_batches(settings, prepared.batches)
        found = fit(prepared.classifier, chosen_on, [job], options, callbacks=callbacks, resume=resume)
        if settings.refit:
            found = refit_alone(prepared, initial, job, found)
    prepared.proof.check_unchanged(prepared.model.network)
    return next((fitted for fitted in found if isinstance(fitted, Fitted)), None)
