"""Training: Lightning's Trainer over one run or batched jobs, quiet, and how it ended."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from finetune.atomic import is_ours, not_written
from finetune.data.module import Batches
from finetune.errors import Interrupted, RequestError, RunError
from finetune.signals import Signal, signals, signals_wait
from finetune.training.averages import Averages
from finetune.training.batched_checkpoints import BatchedCheckpoints
from finetune.training.best import of_side
from finetune.training.callbacks import Curves
from finetune.training.checkpoint import AtomicCheckpointIO, Checkpoints, RunCheckpoints
from finetune.training.classifier import Classifier
from finetune.training.device import Device, Precision
from finetune.training.distributed import SINGLE, Rank
from finetune.training.learner import Job, Learner
from finetune.training.several import per_label
from finetune.training.stacked import StackedClassifier


@dataclass(frozen=True)
class Fitted:
    """What training came to; measures and logits (of the best epoch) are None where that split has no images.

    averaged: whether the best are averages of the weights.
    folds: where folds measured it, their metrics with intervals; then `test_logits` are of all images.
    val, test: the metrics by name; where images have several labels, with those of each as `per_label`.
    """

    best_epoch: int
    epochs: int
    steps: int
    val: dict[str, Any] | None
    test: dict[str, Any] | None
    test_logits: Tensor | None
    val_logits: Tensor | None = None
    folds: dict[str, Any] | None = None
    averaged: bool = False


@dataclass(frozen=True)
class Options:
    """How long and on what to train; compiled: whether the network is. checkpoint_every: so many epochs."""

    epochs: int
    max_steps: int | None = None
    accumulate_batches: int = 1
    clip_norm: float | None = None
    device: Device = "cpu"
    precision: Precision = "32-true"
    compiled: bool = False
    rank: Rank = SINGLE
    checkpoint_every: int | None = None
    profiler: str | None = None
    loggers: Sequence[Any] = ()


def fit(
    learner: Learner,
    batches: Batches,
    jobs: Sequence[Job],
    options: Options,
    callbacks: Sequence[pl.Callback] = (),
    resume: Sequence[Path] = (),
) -> list[Fitted | RunError]:
    """Train, keep each job's best epoch, and evaluate the test split once with it.

    jobs: one of a Classifier, or one of each stacked job.
    resume: each job's checkpoint to go on from; none to begin.
    Returns nothing in a process that does not lead.
    RunError: a number of a run is no longer finite, memory runs out, or a file cannot be written.
    Interrupted: Ctrl-C or SIGTERM; the last epoch's checkpoints are kept.
    """
    learner.jobs = jobs
    given = any(not type(one).__module__.startswith("finetune.") for one in callbacks)
    checkpoints: Checkpoints
    path: Path | None = None
    if isinstance(learner, StackedClassifier):
        checkpoints = BatchedCheckpoints(learner, options.max_steps, resume)
    else:
        path = next(iter(resume), None)
        averages = next((one for one in callbacks if isinstance(one, Averages)), None)
        checkpoints = RunCheckpoints(jobs, options.max_steps, options.checkpoint_every, averages)
    torch.manual_seed(batches.seed + options.rank.rank * 1_000_003)  # for dropout, whatever has drawn before
    with _quiet_lightning(), _ends_translated(jobs, checkpoints, given):
        writes = [Curves()] if jobs[0].writer else []
        # A checkpoint says that its epoch is done: all else that is written of the epoch comes before.
        trainer = _trainer(learner, options, [*writes, *callbacks, checkpoints])
        trainer.fit(learner, batches, ckpt_path=path, weights_only=True)
        if not options.rank.is_main:
            return []
        if options.rank.world_size > 1:  # the rest is for one
            trainer = _trainer(learner, replace(options, rank=SINGLE), [])
        checkpoints.load_best(learner)
        return _evaluate(learner, batches, trainer)


def _trainer(learner: Learner, options: Options, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's, which leaves signals to us: its own handler waits, inside it, for the other processes."""
    rank = options.rank
    environment = [] if rank.world_size > 1 else [LightningEnvironment()]
    trainer = pl.Trainer(
        accelerator=options.device,
        precision=options.precision,
        devices=rank.local_world_size,
        num_nodes=rank.world_size // rank.local_world_size,
        strategy=_ddp(learner) if rank.world_size > 1 else "auto",
        plugins=[AtomicCheckpointIO(), *environment],
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulate_batches,
        gradient_clip_val=options.clip_norm,
        callbacks=callbacks,
        logger=options.loggers or False,
        log_every_n_steps=1,  # what Lightning's own callbacks log
        profiler=options.profiler
        and getattr(pl.profilers, f"{options.profiler.title()}Profiler")(learner.jobs[0].folder, "profile"),
        enable_checkpointing=any(isinstance(one, pl.callbacks.Checkpoint) for one in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=learner.jobs[0].folder,
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _ddp(learner: Learner) -> DDPStrategy:
    """Gradients averaged over the processes; buffers are the classifier's own matter."""
    assert isinstance(learner, Classifier)
    used = {id(parameter) for parameter in learner.network.parameters()}
    idle = any(p.requires_grad and id(p) not in used for p in learner.model.parameters())
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False, find_unused_parameters=idle
    )


def _evaluate(learner: Learner, batches: Batches, trainer: pl.Trainer) -> list[Fitted | RunError]:
    logits: dict[str, Tensor] = {}  # of each split (J, N, outputs)
    tests: list[dict[str, Any]] = [{} for _ in learner.jobs]
    if len(batches.split["val"]):
        logits["val"] = torch.cat(trainer.predict(learner, batches), 1)  # type: ignore[arg-type]
    if len(batches.split["test"]):
        trainer.test(learner, batches, verbose=False)
        tests = [of_side("test", metrics) for metrics in learner.metrics()]
        logits["test"] = torch.cat(learner.logits, 1)
    found: list[Fitted | RunError] = []
    for number, job in enumerate(learner.jobs):
        own = {split: values[number] for split, values in logits.items()}
        measured = {"val": of_side("val", job.best.metrics), "test": tests[number]}
        for split in own if learner.labels else ():
            labels = batches.examples.labels[batches.split[split]]
            measured[split]["per_label"] = per_label(own[split], labels, learner.labels)
        fitted = Fitted(
            best_epoch=job.best.epoch,
            averaged=job.best.averaged,
            epochs=job.best.kept,
            steps=job.steps,
            val=measured["val"] or None,
            test=measured["test"] or None,
            test_logits=own.get("test"),
            val_logits=own.get("val"),
        )
        found.append(job.error or fitted)
    return found


@contextmanager
def _ends_translated(jobs: Sequence[Job], checkpoints: Checkpoints, given: bool) -> Iterator[None]:
    """Each way in which training ends early as an error of ours that says what is kept."""
    first, batched = jobs[0], isinstance(checkpoints, BatchedCheckpoints)
    try:
        with signals(), signals_wait():
            yield
    except Signal as received:
        checkpoints.write()
        name = signal.Signals(received.number).name
        kept = max((job.best for job in jobs), key=lambda best: best.kept)
        raise Interrupted(f"interrupted by {name}; {kept}", 128 + received.number) from None
    except RunError as error:
        raise (error if batched else RunError(f"{error}; {first.best}")) from None
    except OSError as error:
        if not is_ours(error, *(job.folder for job in jobs)):
            raise
        raise RunError(f"{not_written(first.folder, error)}; {first.best}") from None
    except torch.OutOfMemoryError:
        way = "hydra/launcher=basic" if batched else f"data.image_size; {first.best}"
        raise RunError(f"the GPU's memory is full, expected a smaller batch_size or {way}") from None
    except (MisconfigurationException, RuntimeError) as error:
        told = str(error).partition("\n")[0]
        if not (isinstance(error, MisconfigurationException) or told.startswith("Early stopping")):
            raise
        raise RequestError("callbacks: " * (given and not batched) + told) from None


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's notes for its own users kept off the terminal; what concerns ours is said by us."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        # With precision=16 the first steps may be skipped, until the gradient's scale fits.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
