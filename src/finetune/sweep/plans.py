"""The jobs of a sweep before they train, and which of them can train together."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.atomic import not_written, write_sealed
from finetune.choices.best import score
from finetune.choices.losses import LOSSES
from finetune.choices.optimizers import OPTIMIZERS
from finetune.config.schema import Settings
from finetune.errors import Interrupted, RequestError, RunError, one_line, shown
from finetune.runs.sweeps import ranges, unescaped

if TYPE_CHECKING:  # it imports torch
    from finetune.runs.resume import ResumeState

# What the jobs of a group may differ in; of `optimizer` its numbers.
OWN = (
    "seed",
    "schedule",
    "warmup_epochs",
    "step_epochs",
    "step_gamma",
    "label_smoothing",
    "class_weights",
    "patience",
)
MOST = 128  # jobs of one group: more gain nothing and need memory


@dataclass
class Plan:
    """One job: what is asked for and, once it has ended, what it came to.

    overrides: of this job, as on the command line; shown: those of them that tell it from the others.
    settings: None where the request was wrong, as `wrong` says.
    code: exit code. score: in validation, larger where it is better.
    together: whether it trained in a group before the sweep was interrupted. resume_state: where it then was.
    """

    number: int
    folder: Path
    overrides: Sequence[str]
    settings: Settings | None = None
    wrong: RequestError | None = None
    shown: str = ""
    code: int = 0
    score: float | None = None
    ended: bool = False
    together: bool = False
    resume_state: ResumeState | None = None

    def finish(self, summary: dict[str, Any]) -> None:
        """Note what a job came to."""
        self.ended, self.score = True, summary["val"] and score(summary["best"], summary["val"])

    def fail(self, error: Exception) -> None:
        """Tell at once why a job failed, here and in its summary.json."""
        self.ended, self.code = True, 1  # in a sweep a wrong request is a failed job like any other
        line = one_line(error)
        print(f"error: job {self.number}{self.shown and f' ({self.shown})'}: {line}", file=sys.stderr)
        if isinstance(error, RequestError) and any((self.folder / "checkpoints").glob("*.ckpt")):
            return  # what has been trained is an older run's, or can be gone on with
        with suppress(RunError):  # the disk may be what failed
            write_sealed(self.folder / "summary.json", {"status": "failed", "reason": line})


@contextmanager
def failing(plans: Sequence[Plan]) -> Iterator[None]:
    """What goes wrong in there is what jobs that have not ended by then have failed by."""
    try:
        yield
    except Interrupted:
        raise
    except (RequestError, RunError, OSError) as error:
        told = RunError(not_written(plans[0].folder, error)) if isinstance(error, OSError) else error
        for plan in plans:
            if not plan.ended:
                plan.fail(told)


def refuse_several(settings: Settings) -> None:
    """Raise RequestError where a job of a sweep asks for several processes."""
    if settings.fast_dev_run:
        raise RequestError("fast_dev_run=true: expected without -m")
    if (settings.trainer.devices, settings.trainer.nodes) != (1, 1):
        raise RequestError(
            "trainer=ddp: expected without -m, a command for each run; in a sweep jobs train together on one"
            " device (trainer=auto), or side by side (hydra/launcher=joblib)"
        )


def alone_because(settings: Settings) -> str | None:
    """The setting on account of which a job trains alone; None where it may train together with others."""
    optimizer = settings.optimizer.name
    reasons = (
        (LOSSES[settings.loss].stacked is None, f"loss={settings.loss}"),
        (not OPTIMIZERS[optimizer].together, f"optimizer={optimizer}"),
        (settings.phased, "phases" if settings.phases else "freeze=auto"),
        (settings.ema, f"ema={settings.ema}"),
        (settings.folded, f"data.folds={settings.data.folds}"),
        (settings.head_dropout, f"head_dropout={settings.head_dropout:g}"),
        (settings.freeze == ["none"], "freeze=none"),
        (settings.cache == "none", "cache=none"),
        (settings.fresh, settings.fresh or ""),
        (settings.data.source == "random", "data=random"),
        (settings.monitor_gradients, "monitor_gradients=true"),
        (settings.lightning(), str(settings.lightning())),
        (settings.precision not in ("auto", "32"), f"precision={settings.precision}"),
        (settings.compile is True, "compile=true"),
    )
    return next((why for applies, why in reasons if applies), None)


def common(settings: Settings) -> str:
    """All that jobs must have in common to train together, as text."""
    shared: dict[str, Any] = settings.model_dump(exclude=set(OWN))
    shared["optimizer"] = settings.optimizer.name
    from finetune.model.build import brought  # it imports torch

    random = settings.weights == "random" or (settings.weights == "auto" and brought(settings.model))
    if random or settings.batchnorm == "auto":  # another seed is another backbone, or other folds decide
        shared["seed"] = settings.seed
    return json.dumps(shared)


def groups(plans: Sequence[Plan]) -> list[list[Plan]]:
    """The plans in groups that may train together, in the order of their first jobs.

    Those of an interrupted sweep go on together where they stand at the same epoch.
    """
    found: dict[str, list[Plan]] = {}
    for plan in plans:
        if plan.settings is not None:
            alone = alone_because(plan.settings) or plan.settings.resume
            key = f"alone {plan.number}" if alone else common(plan.settings)
            key += f" after {plan.resume_state.epochs}" if plan.resume_state else ""
            found.setdefault(key, []).append(plan)
    return [group[i : i + MOST] for group in found.values() for i in range(0, len(group), MOST)]


def tell_apart(plans: Sequence[Plan]) -> None:
    """Set what each job is called by: the overrides that not all of them share."""
    shared = set.intersection(*(set(plan.overrides) for plan in plans))
    for plan in plans:
        plan.shown = shown(" ".join(unescaped(one) for one in plan.overrides if one not in shared))


def varying(plans: Sequence[Plan]) -> list[str]:
    """The keys of the overrides that not all of them share."""
    shared = set.intersection(*(set(plan.overrides) for plan in plans))
    return list(dict.fromkeys(o.partition("=")[0] for p in plans for o in p.overrides if o not in shared))


def numbers(plans: Sequence[Plan]) -> str:
    """Their numbers in few words."""
    return ranges(str(plan.number) for plan in plans)
