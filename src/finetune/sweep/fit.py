"""A group's jobs trained to their end: epochs, interruptions, and each job's best epoch on the test split."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable

import torch
from torch import Tensor

from finetune.errors import Interrupted, RunError
from finetune.sweep.together import Together
from finetune.training.best import of_side
from finetune.training.fit import Fitted
from finetune.training.signals import Signal, check, signals, signals_wait


def fit(
    jobs: Together,
    *,
    epochs: int,
    max_steps: int | None,
    say: Callable[[int, list[dict[str, float]], float], None],
) -> list[Fitted | RunError]:
    """Train, keep each job's best epoch, and evaluate the test split once with it, as `training.fit` does.

    say: called with an epoch, the metrics of the jobs that still train, and its seconds.

    Raises:
        RunError: the GPU's memory is full.
        Interrupted: Ctrl-C or SIGTERM; the last epoch's checkpoints are kept.
    """
    try:
        with signals():
            for epoch in range(max(jobs.last.epochs), epochs):
                if not jobs.live or jobs.step >= (max_steps or math.inf):
                    break
                check()
                started = time.perf_counter()
                sides = {"train": jobs.train_epoch(epoch, max_steps or math.inf).means()}
                if len(jobs.batches[0].split["val"]):
                    sides["val"] = jobs.judge(jobs.batches[0].predict_dataloader(), jobs.state)[0].means()
                    jobs.drop("the validation loss", [one["loss"] for one in sides["val"]], epoch)
                metrics = [
                    {f"{name}/{side}": number for side in sides for name, number in sides[side][job].items()}
                    for job in range(len(jobs.records))
                ]
                with signals_wait():  # curves, records and snapshots stand at the same epoch
                    jobs.end_epoch(epoch + 1, metrics)
                say(epoch + 1, [metrics[job] for job in jobs.live], time.perf_counter() - started)
            jobs.write()
            return _results(jobs)
    except Signal as received:
        jobs.write()
        name = signal.Signals(received.number).name
        epoch = max(jobs.last.epochs)
        kept = f"the checkpoints of epoch {epoch} are kept" if epoch else "no epoch was finished"
        raise Interrupted(f"interrupted by {name}; {kept}", 128 + received.number) from None
    except torch.OutOfMemoryError:
        raise RunError(
            f"the GPU's memory is full with {len(jobs.records)} jobs at once, expected a smaller batch_size,"
            " or hydra/launcher=basic"
        ) from None


def _results(jobs: Together) -> list[Fitted | RunError]:
    tests: list[dict[str, float] | None] = [None] * len(jobs.records)
    state = {name: value for (kind, name), value in jobs.best.tensors.items() if kind == "state"}
    logits: dict[str, Tensor] = {}
    if len(jobs.batches[0].split["val"]):
        logits["val"] = jobs.judge(jobs.batches[0].predict_dataloader(), state)[1]
    if len(jobs.batches[0].split["test"]):
        tally, logits["test"] = jobs.judge(jobs.batches[0].test_dataloader(), state)
        tests = [*tally.means()]
        jobs.live = [job for job in range(len(jobs.records)) if job not in jobs.ended]
        jobs.drop("the test loss", [one["loss"] for one in tests if one], max(jobs.last.epochs) - 1)
    found: list[Fitted | RunError] = []
    for job, record in enumerate(jobs.records):
        val = of_side("val", record.best.metrics)
        fitted = Fitted(
            record.best.epoch,
            record.best.kept,
            record.steps,
            val or None,
            tests[job],
            *(logits[side][job] if side in logits else None for side in ("test", "val")),
        )
        found.append(jobs.ended.get(job, fitted))
    return found
