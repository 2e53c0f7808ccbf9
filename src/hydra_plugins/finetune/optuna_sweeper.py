"""Hydra's sweeper `optuna`: asks a study for a batch of trials, has them trained together, tells it."""

# No `from __future__ import annotations`: Hydra loads plugins in a way that dataclasses then stumble over.

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
from finetune.choices.best import NAMES, deciding
from finetune.errors import RequestError, counted, shown, tell
from finetune.runs.folder import is_sweep, one_writer
from finetune.runs.summary import read_summary
from finetune.say import Screen, say
from finetune.sweep.planned import folder_of, list_planned, plan, write_plan
from finetune.sweep.search import recorded

SAMPLERS = ("tpe", "gp", "random")


@dataclass
class OptunaSweeperConf:
    """The settings under `hydra.sweeper`.

    n_trials: in the whole study; a resumed one goes on up to here. batch: trials asked for, and launched,
    together. seed: of the sampler. storage: a SQLite file, or a URL as Optuna takes it; by default study.db
    in the sweep's folder. study: its name in there.
    """

    _target_: str = "hydra_plugins.finetune.optuna_sweeper.OptunaSweeper"
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

    config: Any
    hydra_context: Any
    launcher: Any

    def __init__(self, **options: Any) -> None:
        self.options = OptunaSweeperConf(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over; raises RequestError where Optuna or a right setting is lacking."""
        if find_spec("optuna") is None:
            raise RequestError(
                "hydra/sweeper=optuna: expected Optuna; pip install 'finetune-toolkit[sweeps]' brings it"
            )
        for name in ("n_trials", "batch"):
            if (number := getattr(self.options, name)) < 1:
                raise RequestError(f"hydra.sweeper.{name}={number}: expected 1 or more")
        if (sampler := self.options.sampler) not in SAMPLERS:
            raise RequestError(f"hydra.sweeper.sampler={sampler}: expected {', '.join(SAMPLERS)}")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Search until the study has its trials; a failed job is a failed trial, and the search goes on.

        Raises:
            RequestError: an override or the storage cannot be used.
            Interrupted, SystemExit: a resumed study begins with what was being trained.
        """
        from hydra_plugins.finetune._study import read_space

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = read_space(parser.parse_overrides(arguments))
        # What is wrong with a choice, or with every job, is told now.
        plan(self.hydra_context.config_loader, self.config, space.examples())
        folder = folder_of(self.config)
        if is_sweep(folder) and recorded(folder)[0] == "basic":
            raise RequestError(
                f"hydra.sweep.dir={folder}: expected a new folder; this one holds another sweep"
            )
        with one_writer(folder):
            return self._search(folder, space)

    def _search(self, folder: Path, space: Any) -> list[JobReturn]:
        from hydra_plugins.finetune._study import best_so_far, ended_trials, open_study

        options = self.options
        write_atomically(folder / "multirun.yaml", OmegaConf.to_yaml(self.config).encode())
        storage = options.storage or str(folder / "study.db")
        study = open_study(storage, options.study, options.sampler, options.seed)
        if (ended := ended_trials(study)) >= options.n_trials:
            raise RequestError(
                f"hydra.sweeper.n_trials={options.n_trials}: expected more than"
                f" {counted(ended, 'trial')}, which the study has already"
            )
        returns: list[JobReturn] = []
        while (missing := options.n_trials - ended_trials(study)) > 0:
            returns += self._batch(folder, space, study, min(options.batch, missing))
            say(Screen(), "search", best_so_far(study, options.n_trials))
        return returns

    def _batch(self, folder: Path, space: Any, study: Any, size: int) -> list[JobReturn]:
        """Train the jobs of so many trials and tell the study what came of each."""
        from hydra_plugins.finetune._study import tell_trial

        try:
            trials = [study.ask({**space.distributions}) for _ in range(size)]
        except ValueError as error:
            raise RequestError(
                f"hydra.sweep.dir={folder}: expected what its study began with to search over; {error}"
            ) from None
        jobs = [job for trial in trials for job in space.jobs(trial.params)]
        known = list_planned(folder)
        used = [int(job.name) for job in folder.iterdir() if job.name.isdecimal()]
        first = max(len(known), 1 + max(used, default=-1))  # a resumed search goes on with new jobs
        new = plan(self.hydra_context.config_loader, self.config, jobs, first)
        write_plan(folder, [*known, *new])
        returns = list(self.launcher.launch(jobs, initial_job_idx=first))
        each = len(space.seeds)
        for place, trial in zip(range(0, len(jobs), each), trials, strict=True):
            own = returns[place : place + each]
            values = [_value(job) for job in own]
            numbers = range(first + place, first + place + each)
            summary = _summary(own[0])
            decides = deciding(summary.get("best", "accuracy"), summary.get("val") or ())
            metric = NAMES[decides]  # what the scores are; of a loss they are negative
            tell_trial(study, trial, values, jobs=numbers, metric=metric)
            _expect_validation([job for job, value in zip(own, values, strict=True) if value is None])
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
    return read_summary(Path(job.hydra_cfg.hydra.runtime.output_dir)) or {}  # type: ignore[union-attr]


def _expect_validation(unscored: list[JobReturn]) -> None:
    """End the search where jobs without a score have not failed: it would never know anything."""
    if any(_summary(job).get("status") == "finished" for job in unscored):
        wanted = "images to validate with (data.val_fraction); without them no trial has a score"
        raise SystemExit(tell(RequestError(f"hydra/sweeper=optuna: expected {wanted}")))
