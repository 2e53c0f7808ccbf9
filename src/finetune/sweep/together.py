"""A group of jobs that were prepared once: trained in one step of all, or each solved in its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from pytorch_lightning.callbacks import Callback, LambdaCallback
from rich.console import Console
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE
from torch.utils._pytree import tree_map

from finetune.build import is_light
from finetune.data.module import Batches, StackedBatches
from finetune.data.views import coins
from finetune.errors import RunError, counted
from finetune.finish import finish
from finetune.learners import build_job_config
from finetune.machine import versions
from finetune.model.head import initial_head
from finetune.prepared import Prepared, job_of, start_log
from finetune.refit import choosing_batches, fresh_classifier, initial_state, refit, refit_batches
from finetune.report import terminal
from finetune.run import run_prepared
from finetune.runs import folder as folders
from finetune.runs import resume as resuming
from finetune.say import Screen, kept, say
from finetune.sweep.plans import Plan, failing, numbers, varying
from finetune.training import device as devices
from finetune.training.callbacks import EpochLines, close_log
from finetune.training.checkpoint import AtomicCheckpointIO
from finetune.training.fit import Fitted, fit
from finetune.training.learner import Job
from finetune.training.stacked import Network, StackedClassifier, why_not_stacked


def why_alone(prepared: Prepared) -> str | None:
    """Why jobs prepared like this one cannot train together; None where they can."""
    if prepared.inputs.features is None:
        return "nothing of the model is kept"
    if not is_light(prepared.settings, prepared.inputs):
        return "one step keeps the machine busy"
    inputs, _ = next(iter(prepared.batches.train_dataloader()))
    inputs = tree_map(lambda one: one.to(prepared.options.device), inputs)
    return why_not_stacked(_network(prepared), inputs)


def _network(prepared: Prepared) -> Network:
    model = prepared.model
    model.network.to(prepared.options.device)
    return Network(model.network, prepared.inputs.network, model.frozen)


def train_together(
    plans: list[Plan], prepared: Prepared, console: Console, reach: Callable[[int], None]
) -> None:
    _say_together(plans, console, "all advance in each step")
    if state := prepared.resume_state:
        terminal.resume_lines(console, state.epochs, resuming.changed_versions(state, versions()))
    jobs = [_own(prepared, plan) for plan in plans]
    boards = [start_log(jobs[0])]
    boards += [start_log(job, jobs[0].folder) for job in jobs[1:]]
    ready_at = time.perf_counter()
    light = is_light(prepared.settings, prepared.inputs, len(jobs))
    shown = [
        EpochLines(console, prepared.settings.epochs),
        LambdaCallback(on_train_epoch_end=lambda trainer, _: reach((trainer.current_epoch + 1) * len(jobs))),
    ]
    with devices.threads(1 if light else None), devices.freed_memory_kept():
        written = [job_of(job, board) for job, board in zip(jobs, boards, strict=True)]
        fitted = _fit(plans, jobs, written, shown)
    prepared.proof.check_unchanged(prepared.model.network)
    training, total_time = time.perf_counter() - ready_at, time.perf_counter() - prepared.started
    for plan, job, board, came_to in zip(plans, jobs, boards, fitted, strict=True):
        if isinstance(came_to, RunError):
            with suppress(OSError):  # the disk may be what failed
                close_log(board.writer, STATUS_FAILURE)
            continue
        share = replace(job, started=time.perf_counter() - total_time / len(jobs))
        quiet, own = Screen(quiet=True), training / len(jobs)
        with failing([plan]), board, kept(quiet, job.folder / folders.LOG):
            _take_backbone(job)
            plan.finish(finish(share, board, came_to, training=own, console=quiet, like=jobs[0].folder))
    _say_done(plans, prepared, console)


def _take_backbone(job: Prepared) -> None:
    """Put the weights of a job's best epoch into the backbone, where it trains."""
    model = job.model
    if model.backbone_trains():
        state = AtomicCheckpointIO().load_checkpoint(job.folder / "checkpoints" / "best.ckpt")["state_dict"]
        own = {name: value for name, value in state.items() if not name.startswith(f"{model.head}.")}
        model.network.load_state_dict(own, strict=False)


def _say_together(plans: Sequence[Plan], console: Console, how: str) -> None:
    differing = f", which differ in {', '.join(varying(plans))}" if len(plans) > 1 else ""
    say(console, "together", f"jobs {numbers(plans)}{differing}: {how}")


def _say_done(plans: Sequence[Plan], prepared: Prepared, console: Console) -> None:
    finished, seconds = sum(not plan.code for plan in plans), time.perf_counter() - prepared.started
    say(console, "done", f"{finished} of {counted(len(plans), 'job')}, {seconds:.1f} s")


def solve_in_turns(
    plans: list[Plan], prepared: Prepared, console: Console, reach: Callable[[int], None]
) -> None:
    """Solve each job's head on the features that all share."""
    _say_together(plans, console, "solved in turns on shared features")
    initial, quiet = initial_state(prepared), Screen(quiet=True)
    share, like = (time.perf_counter() - prepared.started) / len(plans), None
    for done, plan in enumerate(plans, 1):
        job = replace(_own(prepared, plan), started=time.perf_counter() - share)
        with failing([plan]), kept(quiet, plan.folder / folders.LOG):
            job = replace(job, classifier=fresh_classifier(job, initial))
            plan.finish(run_prepared(job, quiet, like))
            like = like or plan.folder
        reach(done)
    _say_done(plans, prepared, console)


def _fit(
    plans: list[Plan], prepared: list[Prepared], jobs: list[Job], callbacks: list[Callback]
) -> list[Fitted | RunError]:
    """Train the jobs together and, where they ask for it, refit them."""
    first = prepared[0]
    settings, options = first.settings, first.options
    batches = [choosing_batches(one.settings, one.batches) for one in prepared]
    resume = [plan.resume_state.path for plan in plans if plan.resume_state]
    learner = _learner(plans, prepared, batches)
    found = fit(learner, StackedBatches(batches), jobs, options, callbacks=callbacks, resume=resume)
    if not settings.refit or not any(isinstance(one, Fitted) for one in found):
        return found
    again = [refit_batches(one.settings, one.batches) for one in prepared]
    learner = _learner(plans, prepared, again)
    return refit(learner, StackedBatches(again), jobs=jobs, chosen=found, options=options)


def _learner(plans: list[Plan], prepared: list[Prepared], batches: Sequence[Batches]) -> StackedClassifier:
    """All jobs as they are before they train, on these batches of each."""
    network = _network(prepared[0])
    configs = [
        build_job_config(one.settings, one.model, own.train_labels, len(own.train_dataloader()))
        for one, own in zip(prepared, batches, strict=True)
    ]
    shared, head = network.frozen.others(network.model), prepared[0].model.head
    heads = [initial_head(network.model, head, one.settings.seed) if head else {} for one in prepared]
    states = [shared | own for own in heads]
    return StackedClassifier(network, configs, states, lambda number, error: plans[number].fail(error))


def _own(prepared: Prepared, plan: Plan) -> Prepared:
    """The same for another job: its settings, its folder begun, its batches."""
    settings = plan.settings
    assert settings is not None
    if plan.folder != prepared.folder:
        if plan.resume_state is None:
            folders.begin(plan.folder, settings.model_dump())
        folders.start(plan.folder, prepared.inputs.bad)
    shared, inputs = prepared.batches, prepared.inputs.inputs
    own = replace(inputs, coin=coins(len(inputs.coin), settings.seed))
    batches = Batches(replace(shared.examples, inputs=own), shared.batch_size, settings.seed)
    origin = {**prepared.origin, **resuming.origin_of_request(plan.folder, settings, plan.resume_state)}
    begun = replace(prepared, settings=settings, folder=plan.folder, batches=batches, origin=origin)
    return replace(begun, resume_state=plan.resume_state)
