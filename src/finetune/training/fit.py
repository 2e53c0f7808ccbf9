"""Lightning's Trainer set up the way this toolkit uses it: quiet, atomic, told apart how it ends."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from finetune.atomic import not_written
from finetune.data.module import Batches
from finetune.errors import Interrupted, RunError
from finetune.training.best import of_side
from finetune.training.callbacks import Curves, Terminal
from finetune.training.checkpoint import AtomicCheckpointIO, Checkpoints
from finetune.training.device import Device, Precision
from finetune.training.distributed import ALONE, Place
from finetune.training.module import Classifier
from finetune.training.monitor import GradientMonitor
from finetune.training.signals import Signal, signals


@dataclass(frozen=True)
class Fitted:
    """What training came to; measures and logits are None where that side of the split has no pictures.

    val, test: the metrics by name; where pictures have several labels, with those of each as `per_label`.
    val_logits, test_logits: of the best epoch's weights, in the order of the split.
    """

    best_epoch: int
    epochs: int
    steps: int
    val: dict[str, Any] | None
    test: dict[str, Any] | None
    test_logits: Tensor | None
    val_logits: Tensor | None = None


def fit(
    classifier: Classifier,
    batches: Batches,
    folder: Path,
    console: Console,
    writer: SummaryWriter | None,
    *,
    epochs: int,
    max_steps: int | None,
    patience: int | None,
    frozen_sha256: str,
    device: Device,
    precision: Precision,
    accumulate_batches: int,
    clip_norm: float | None,
    monitor_gradients: bool = False,
    origin: Mapping[str, Any] | None = None,
    going_on: Path | None = None,
    place: Place = ALONE,
) -> Fitted | None:
    """Train, keep the best epoch, and evaluate the test split once with it.

    origin: what each checkpoint says of where it came from. going_on: the checkpoint to begin with.
    place: among processes that train together; one that does not lead has no writer and returns None.

    Raises:
        RunError: a number is no longer finite, memory runs out, or a file cannot be written.
        Interrupted: Ctrl-C or SIGTERM; the last epoch's checkpoint is kept.
    """
    checkpoints = Checkpoints(folder / "checkpoints", frozen_sha256, patience, max_steps, origin)
    files = AtomicCheckpointIO()
    torch.manual_seed(batches.seed + place.rank * 1_000_003)  # for dropout, whatever has drawn before
    common = partial(
        _trainer,
        accelerator=device,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    callbacks: list[pl.Callback] = [checkpoints]
    if writer is not None:
        callbacks = [
            Curves(writer, folder / "metrics.csv"),
            checkpoints,
            Terminal(console, epochs, len(batches.train_dataloader())),  # says so when all is kept
            *([GradientMonitor(writer, console)] if monitor_gradients else []),
        ]
    with quiet_lightning():
        trainer = common(
            devices=place.here,
            num_nodes=place.size // place.here,
            strategy=_together(classifier) if place.size > 1 else "auto",
            plugins=[files] if place.size > 1 else [files, LightningEnvironment()],
            max_epochs=epochs,
            accumulate_grad_batches=accumulate_batches,
            gradient_clip_val=clip_norm,
            callbacks=callbacks,
        )
        with _told_apart(checkpoints):
            trainer.fit(classifier, batches, ckpt_path=going_on, weights_only=True)
            steps = trainer.global_step
            if not place.leads:
                return None
            if place.size > 1:  # the rest is for one
                trainer = common(devices=1, plugins=[LightningEnvironment()])
            classifier.load_state_dict(
                files.load_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"]
            )
            best = checkpoints.best
            val = of_side("val", best.metrics) or None
            test = test_logits = val_logits = None
            if val:
                val_logits = torch.cat(cast("list[Tensor]", trainer.predict(classifier, batches)))
            if val and classifier.labels:
                trainer.validate(classifier, batches, verbose=False)
                val |= {"per_label": classifier.per_label("val")}
            if len(batches.split["test"]):
                trainer.test(classifier, batches, verbose=False)
                test, test_logits = of_side("test", classifier.metrics()), torch.cat(classifier.logits)
                test |= {"per_label": classifier.per_label("test")} if classifier.labels else {}
    return Fitted(best.epoch, best.kept, steps, val, test, test_logits, val_logits)


def _trainer(**arguments: Any) -> pl.Trainer:
    """Lightning's, which leaves signals to us: its own handler waits, inside it, for the other processes."""
    trainer = pl.Trainer(**arguments)
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _together(classifier: Classifier) -> DDPStrategy:
    """Gradients averaged over the processes; buffers are the classifier's own matter."""
    used = {id(parameter) for parameter in classifier.network.parameters()}
    idle = any(p.requires_grad and id(p) not in used for p in classifier.model.parameters())
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(), broadcast_buffers=False, find_unused_parameters=idle
    )


@contextmanager
def _told_apart(checkpoints: Checkpoints) -> Iterator[None]:
    """Each way in which training ends early as an error of ours that says what is kept."""
    try:
        with signals():
            yield
    except Signal as received:
        name = signal.Signals(received.number).name
        raise Interrupted(f"interrupted by {name}; {checkpoints.best}", 128 + received.number) from None
    except RunError as error:
        raise RunError(f"{error}; {checkpoints.best}") from None
    except OSError as error:
        raise RunError(f"{not_written(checkpoints.folder.parent, error)}; {checkpoints.best}") from None
    except torch.OutOfMemoryError:
        raise RunError(
            f"the GPU's memory is full, expected a smaller batch_size or data.image_size; {checkpoints.best}"
        ) from None


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
