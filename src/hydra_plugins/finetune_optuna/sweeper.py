"""Hydra's sweeper `optuna`: asks a study for a batch of trials, has them trained together, tells it."""

# No `from __future__ import annotations`: Hydra loads plugins in a way that dataclasses then stumble over.

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from finetune.atomic import write_atomically
from finetune.errors import RequestError, shown
from finetune.report.say import Screen, say

SAMPLERS = ("tpe", "gp", "random")


@dataclass
class OptunaSweeperConf:
    """The knobs under `hydra.sweeper`.

    n_trials: in the whole study; a resumed one goes on up to here. batch: trials asked for, and launched,
    together. seed: of the sampler. storage: a SQLite file, or a URL as Optuna takes it; by default study.db
    in the sweep's folder. study: its name in there.
    """

    _target_: str = "hydra_plugins.finetune_optuna.sweeper.OptunaSweeper"
    n_trials: int = 20
    batch: int = 5
    sampler: str = "tpe"
    seed: int = 0
    storage: str | None = None
    study: str = "finetune"


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="finetune"
)


class OptunaSweeper(Sweeper):
    """Searches for the settings with the highest score in validation, which is what each job returns."""

    def __init__(self, **knobs: Any) -> None:
        self.knobs = OptunaSweeperConf(**knobs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over.

        Raises:
            RequestError: Optuna is not installed, or a knob is wrong.
        """
        rules = (
            (
                find_spec("optuna") is None,
                "hydra/sweeper=optuna: expected Optuna; pip install 'finetune-toolkit[sweeps]' brings it",
            ),
            (self.knobs.n_trials < 1, f"hydra.sweeper.n_trials={self.knobs.n_trials}: expected 1 or more"),
            (self.knobs.batch < 1, f"hydra.sweeper.batch={self.knobs.batch}: expected 1 or more"),
            (
                self.knobs.sampler not in SAMPLERS,
                f"hydra.sweeper.sampler={self.knobs.sampler}: expected {', '.join(SAMPLERS)}",
            ),
        )
        for broken, line in rules:
            if broken:
                raise RequestError(line)
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Search until the study has its trials; a failed job is a failed trial, and the search goes on.

        Raises:
            RequestError: an override or the storage cannot be used.
            SystemExit: interrupted; a resumed study begins with what was being trained.
        """
        from finetune.sweep.planned import listed, write
        from finetune.sweep.planning import plan
        from hydra_plugins.finetune_optuna import _space, _study

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = _space.read(parser.parse_overrides(arguments))
        self.validate_batch_is_legal(space.examples())  # a choice that Hydra refuses is told now
        folder = Path(os.path.relpath(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        knobs = self.knobs
        study = _study.open_study(
            knobs.storage or str(folder / "study.db"), knobs.study, knobs.sampler, knobs.seed
        )
        if _study.ended(study) >= knobs.n_trials:
            raise RequestError(
                f"hydra.sweeper.n_trials={knobs.n_trials}: expected more than the {_study.ended(study)}"
                " trials that the study has already"
            )
        returns: list[JobReturn] = []
        while (missing := knobs.n_trials - _study.ended(study)) > 0:
            try:
                trials = [study.ask({**space.distributions}) for _ in range(min(knobs.batch, missing))]
            except ValueError as error:
                raise RequestError(
                    f"hydra.sweep.dir={folder}: expected what its study began with to search over; {error}"
                ) from None
            jobs = [job for trial in trials for job in space.jobs(trial.params)]
            known = listed(folder)
            number = max(len(known), _next_number(folder))
            new = plan(self.hydra_context.config_loader, self.config, jobs, number)
            write(folder, [*known, *new], searched=True)
            ended = list(self.launcher.launch(jobs, initial_job_idx=number))
            each = len(jobs) // len(trials)
            for first, trial in zip(range(0, len(jobs), each), trials, strict=True):
                own = ended[first : first + each]
                values, numbers = [_value(job) for job in own], range(number + first, number + first + each)
                _study.tell(study, trial, values, numbers, _metric(own))
                if unscored := [job for job, value in zip(own, values, strict=True) if value is None]:
                    _expect_validation(unscored)
            say(Screen(), "search", _study.so_far(study, knobs.n_trials))
            returns += ended
        return returns


def _value(job: JobReturn) -> float | None:
    """The score that a job returned; None where it failed."""
    if job.status == JobStatus.FAILED:  # a fault of ours, which nobody has told yet
        fault = job._return_value
        told = shown(f"{' '.join(job.overrides or ())}: {type(fault).__name__}: {fault}")
        print(f"error: {told}", file=sys.stderr)
        return None
    return job.return_value


def _summary(job: JobReturn) -> dict[str, Any]:
    from finetune.sweep.jobs import summary_of

    return summary_of(Path(job.hydra_cfg.hydra.runtime.output_dir))  # type: ignore[union-attr]


def _metric(jobs: list[JobReturn]) -> str:
    """What the scores of a trial's jobs are, as their summaries tell."""
    from finetune.training.best import NAMES, deciding

    return NAMES[deciding(_summary(jobs[0]).get("val") or ())]


def _expect_validation(jobs: list[JobReturn]) -> None:
    """End the search where jobs without a score have not failed: it would never know anything."""
    if any(_summary(job).get("status") == "finished" for job in jobs):
        told = "hydra/sweeper=optuna: expected pictures to validate with (data.val_fraction)"
        print(f"error: {told}; without them no trial has a score", file=sys.stderr)
        raise SystemExit(2)


def _next_number(sweep: Path) -> int:
    """The first number that no job of a sweep's folder has: a resumed search goes on with new jobs."""
    return max((int(job.name) for job in sweep.iterdir() if job.name.isdigit()), default=-1) + 1
