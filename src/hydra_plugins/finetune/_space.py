"""What is searched, read from Hydra's overrides: intervals, ranges, choices as distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from finetune.errors import RequestError

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
        """Jobs in which each choice occurs at least once."""
        options = {
            key: list(one.choices) if isinstance(one, CategoricalDistribution) else [one.low]
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
