"""A search: the space that Hydra's overrides describe, what was tried, what came of it, what to try next."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna import Study, Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from finetune.errors import RequestError, counted

# Without the liar a batch would be asked for where its own trials, not yet told, already are.
SAMPLERS = {
    "tpe": lambda seed: TPESampler(seed=seed, constant_liar=True),
    "gp": lambda seed: GPSampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
ENDED = "jobs"  # an attribute that a trial gets when it has ended by itself: the numbers of its jobs
METRIC = "metric"


def open_study(storage: str, name: str, sampler: str, seed: int) -> Study:
    """A study in a SQLite file or at a URL, begun or resumed.

    What was being trained when an earlier process was stopped is failed and will be asked first.

    Raises:
        RequestError: the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    url = storage if "://" in storage else f"sqlite:///{Path(storage).expanduser()}"
    try:
        study = optuna.create_study(storage=url, study_name=name, direction="maximize", load_if_exists=True)
        waiting = [_asked(trial) for trial in study.get_trials(states=[TrialState.WAITING])]
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            # First asked again, then failed: a process that is killed in between loses none.
            if (params := _asked(trial)) not in waiting:
                study.enqueue_trial(params)
            Trial(study, trial._trial_id).set_user_attr(ENDED, [])
            study.tell(trial.number, state=TrialState.FAIL)
        # A resumed sampler must not draw again what it drew when the study began.
        study.sampler = SAMPLERS[sampler](seed + len(study.trials))
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:  # no driver for a URL
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"hydra.sweeper.storage={storage}: expected a study's SQLite file ({reason})"
        ) from None
    return study


def _asked(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial is to try: what it was told to, and what it has drawn."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def ended_trials(study: Study) -> int:
    """How many trials have ended by themselves."""
    return sum(bool(trial.user_attrs.get(ENDED)) for trial in study.trials)


def tell_trial(
    study: Study, trial: Trial, values: Sequence[float | None], jobs: Sequence[int], metric: str = "accuracy"
) -> None:
    """The mean over a trial's jobs, or failure where one of them has no finite value.

    metric: what the values are, as it is shown.
    """
    trial.set_user_attr(ENDED, list(jobs))
    trial.set_user_attr(METRIC, metric)
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) == len(values):
        study.tell(trial, statistics.fmean(known))
    else:
        study.tell(trial, state=TrialState.FAIL)


def best_so_far(study: Study, wanted: int) -> str:
    """How far the search is, and the best that it has found."""
    text = f"{ended_trials(study)} of {counted(wanted, 'trial')}"
    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        return f"{text}, none with a result yet"
    best = study.best_trial
    jobs = " ".join(map(str, best.user_attrs[ENDED]))
    settings = " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in best.params.items()
    )
    metric, value = best.user_attrs.get(METRIC, "accuracy"), best.value
    assert value is not None
    return f"{text}; best: val {metric} {abs(value):.3f}, job {jobs}, {settings}"


Distribution = FloatDistribution | IntDistribution | CategoricalDistribution


@dataclass(frozen=True)
class Space:
    """The settings to search, those that stay, and what each trial is repeated with."""

    distributions: dict[str, Distribution]
    fixed: list[str]
    seeds: list[list[str]]

    def jobs(self, values: dict[str, Any]) -> list[list[str]]:
        """The overrides of a trial's jobs, one for each seed."""
        # Choices are kept as text, so that what is launched is what stood on the command line.
        searched = [f"{key}={value}" for key, value in values.items()]
        return [[*self.fixed, *searched, *seed] for seed in self.seeds]

    def examples(self) -> list[list[str]]:
        """Jobs in which each choice, and each end of what has ends, occurs at least once."""
        options = {
            key: list(one.choices) if isinstance(one, CategoricalDistribution) else [one.low, one.high]
            for key, one in self.distributions.items()
        }
        most = max(map(len, options.values()))
        return [
            job
            for number in range(most)
            for job in self.jobs({key: some[number % len(some)] for key, some in options.items()})
        ]


def read_space(overrides: Sequence[Override]) -> Space:
    """The space that a command line describes, `seed=0,1,2` to repeat each trial; or raises RequestError."""
    distributions: dict[str, Distribution] = {}
    fixed: list[str] = []
    seeds: list[list[str]] = [[]]
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(f"{key}={override.get_value_element_as_str()}")
        elif key == "seed" and override.is_discrete_sweep():
            seeds = [[f"seed={one}"] for one in override.sweep_string_iterator()]
        else:
            try:
                distributions[key] = distribution(override)
            except ValueError as error:
                raise RequestError(f"{override.input_line}: {error}") from None
    if not distributions:
        raise RequestError(
            "hydra/sweeper=optuna: expected something to search, as 'optimizer.lr=tag(log, interval(1e-4,1))'"
        )
    return Space(distributions, fixed, seeds)


def distribution(override: Override) -> Distribution:
    """The distribution that an override means, `log` as a tag; raises ValueError where Optuna has none."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low: Any = value.start
        high: Any = value.end
        whole = isinstance(low, int) and isinstance(high, int)  # int(interval(1,9))
        return (IntDistribution if whole else FloatDistribution)(low, high, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        numbers: list[Any] = list(value.range())
        if not numbers:
            raise ValueError("expected a range with numbers in it")
        low, high, log, step = min(numbers), max(numbers), "log" in value.tags, abs(value.step)
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(low, high, log, int(step))
        return FloatDistribution(low, high, log, step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))
