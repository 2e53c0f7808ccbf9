"""Train once more, on train and validation images together, as long and as strongly as was best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from finetune.build import solves
from finetune.config.schema import Settings
from finetune.data.module import Batches, for_choosing, for_refit
from finetune.errors import RunError
from finetune.learners import build_classifier
from finetune.model.assemble import Model
from finetune.model.standardize import raw_tensors, take_raw
from finetune.prepared import Prepared
from finetune.training.best import Best
from finetune.training.checkpoint import REFIT, take_refitted
from finetune.training.classifier import Classifier
from finetune.training.fit import Fitted, Options, fit
from finetune.training.learner import Job, Learner
from finetune.training.solved import SolvedClassifier

State = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]


def initial_state(prepared: Prepared) -> State:
    """What training changes, as it is before."""
    model = prepared.model
    state = {name: value.clone() for name, value in model.frozen.others(model.network).items()}
    return state, raw_tensors(model.network, state)


def fresh_classifier(prepared: Prepared, initial: State) -> Classifier:
    """The classifier of these settings and batches, with the model put back to what it was before."""
    put_back(prepared.model, initial)
    compiled, batches = prepared.options.compiled, prepared.batches
    return build_classifier(prepared.settings, prepared.model, prepared.inputs, batches, compiled=compiled)


def put_back(model: Model, initial: State) -> None:
    """Make of what trains what it was before."""
    state, raw = initial
    model.network.load_state_dict(state, strict=False)
    take_raw(model.network, raw)


def choosing_batches(settings: Settings, batches: Batches) -> Batches:
    """The batches until the best is known; without test images where a refitted model is to answer them."""
    if not settings.refit:
        return batches
    return Batches(for_choosing(batches.examples), batches.batch_size, batches.seed, batches.processes)


def refit_batches(settings: Settings, batches: Batches) -> Batches:
    """Train and validation images to train on, and the test images."""
    examples = for_refit(batches.examples)
    size = len(examples.split["train"]) if solves(settings) else settings.batch_size
    return Batches(examples, size, batches.seed, batches.processes)


def refit_alone(
    prepared: Prepared, initial: State, job: Job, chosen: Sequence[Fitted | RunError]
) -> list[Fitted | RunError]:
    """Train one run's model again, from what it was before, with the epoch or the strength that was chosen.

    Of a solved head the larger gradient of both solutions is kept.
    """
    settings, first = prepared.settings, prepared.classifier
    if isinstance(first, SolvedClassifier):
        optimizer = settings.optimizer.model_copy(update={"weight_decay": first.strength})
        settings = settings.model_copy(update={"optimizer": optimizer})
    batches = refit_batches(settings, prepared.batches)
    learner = fresh_classifier(replace(prepared, settings=settings, batches=batches), initial)
    found = refit(learner, batches, jobs=[job], chosen=chosen, options=prepared.options)
    if isinstance(first, SolvedClassifier) and isinstance(learner, SolvedClassifier):
        first.gradient = max(first.gradient, learner.gradient)
    return found


def refit(
    learner: Learner,
    batches: Batches,
    jobs: Sequence[Job],
    chosen: Sequence[Fitted | RunError],
    options: Options,
) -> list[Fitted | RunError]:
    """Train each job until its best epoch, and measure that on the test images.

    jobs, chosen: as they have trained, and what they came to; what was measured in validation stays.
    """
    again = [
        replace(job, writer=None, patience=None, best=Best(until=job.best.epoch), steps=0, checkpoints=REFIT)
        for job in jobs
    ]
    whole = [job for job in jobs if job.error is None]
    for job in whole:
        (job.folder / REFIT).mkdir(exist_ok=True)
    epochs = max(job.best.epoch for job in whole)
    found = fit(learner, batches, again, replace(options, epochs=epochs))
    merged: list[Fitted | RunError] = []
    for job, before, after in zip(jobs, chosen, found, strict=False):  # none where another process leads
        if isinstance(before, Fitted) and isinstance(after, Fitted):
            take_refitted(job.folder)
            merged.append(replace(before, test=after.test, test_logits=after.test_logits))
        else:
            merged.append(before if isinstance(before, RunError) else after)
    return merged
