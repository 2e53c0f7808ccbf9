"""The jobs of a sweep side by side: ranked by validation, repeats as one row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.cells import read_table
from finetune.choices.best import deciding, score
from finetune.runs.folder import check_tables, is_sweep
from finetune.runs.sweeps import SweepJob, read_job, read_runs
from finetune.sweep.planned import planned
from finetune.training.intervals import told_apart

REPEATS = ("seed", "data.split_seed", "data.fold")  # settings in which a repeat differs


@dataclass(frozen=True)
class Spread:
    """A mean and, of two or more, the sample standard deviation."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """Finished jobs that differ in nothing but what repeats, best first.

    by: what ranks them, as `best` says it. level: whether its accuracy on the test images may be the best
    row's; None where it answered others, or is the best.
    """

    settings: dict[str, str]
    jobs: list[SweepJob]
    by: str
    level: bool | None = None

    @property
    def best(self) -> SweepJob:
        """The job with the best validation."""
        return self.jobs[0]

    @property
    def deciding(self) -> str:
        """The metric that ranks, by its name; of data of another kind it is another."""
        return deciding(self.by, self.best.val or self.best.test or {})

    @property
    def score(self) -> float | None:
        """The mean of that metric in validation, larger where it is better; None without validation."""
        each = [score(self.by, job.val) for job in self.jobs if job.val]
        return statistics.fmean(each) if each else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """That of the deciding metric on the test images, the mean of the jobs' own."""
        ends = [(job.test or {}).get("intervals", {}).get(self.deciding) for job in self.jobs]
        low, high = ([one[end] for one in ends if one] for end in (0, 1))
        return (statistics.fmean(low), statistics.fmean(high)) if len(low) == len(ends) else None

    def right(self) -> dict[tuple[str, str], float]:
        """The share of its jobs that name each test image rightly; nothing where answers are missing."""
        jobs = [_right(job) for job in self.jobs]
        alike = all(one.keys() == jobs[0].keys() for one in jobs)
        return {image: statistics.fmean(one[image] for one in jobs) for image in jobs[0] if alike}

    def spread(self, metric: str) -> Spread | None:
        """A metric over the jobs; None where they do not have it."""
        values = [value for job in self.jobs if (value := _metric(job, metric)) is not None]
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Leaderboard:
    """A sweep's jobs: the finished ones ranked, best first, and the others.

    varying: the settings, as the command line has them, in which jobs differ; without REPEATS.
    """

    sweep: Path
    varying: list[str]
    rows: list[Row]
    others: list[SweepJob]

    @property
    def deciding(self) -> list[str]:
        """The metrics that rank: one, but where the data of some jobs is of another kind."""
        return list(dict.fromkeys(row.deciding for row in self.rows)) or [deciding("accuracy", {})]

    @property
    def metrics(self) -> list[str]:
        """What is shown of each row, as `Row.spread` takes it."""
        names = dict.fromkeys([*self.deciding, "loss"])
        return [*(f"{split}_{name}" for split in ("val", "test") for name in names), "seconds"]

    def name(self, job: SweepJob) -> str:
        """The folder of a job within the sweep's: its number."""
        return str(job.folder.relative_to(self.sweep))


def _metric(job: SweepJob, metric: str) -> float | None:
    if metric == "seconds":
        return job.seconds
    split, _, name = metric.partition("_")
    return ((job.val if split == "val" else job.test) or {}).get(name)


def compare(sweep: Path) -> Leaderboard:
    """Rank a sweep's jobs by validation alone, those without it last; raises RequestError of none."""
    whole = is_sweep(sweep)
    jobs = [read_job(job.folder, job.overrides) for job in planned(sweep)] if whole else read_runs(sweep)
    finished = [job for job in jobs if job.status == "finished"]
    done = [job.overrides for job in finished]
    # A resumed search trains in a new job what was stopped in an old one.
    jobs = [job for job in jobs if job.status in ("finished", "failed") or job.overrides not in done]
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if key not in REPEATS)
    varying = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    kept = {job.kept for job in finished}
    by = kept.pop() if len(kept) == 1 else "accuracy"  # jobs that kept their epochs by different metrics
    groups: dict[tuple[str, ...], dict[tuple[str, ...], SweepJob]] = {}
    for job in finished:  # of the same request made twice, the later one counts
        seeds = groups.setdefault(tuple(job.overrides.get(key, "") for key in varying), {})
        seeds[tuple(job.overrides.get(key, "") for key in REPEATS)] = job
    rows = [
        Row(
            dict(zip(varying, settings, strict=True)),
            sorted(seeds.values(), key=lambda job: _rank(Row({}, [job], by))),
            by,
        )
        for settings, seeds in groups.items()
    ]
    others = [job for job in jobs if job.status != "finished"]
    return Leaderboard(sweep, varying, _leveled(sorted(rows, key=_rank)), others)


def _right(job: SweepJob) -> dict[tuple[str, str], bool]:
    check_tables(job.folder, job.files)
    answers = [row for row in read_table(job.folder / "predictions.csv") if row.get("split") == "test"]
    return {(row["picture"], row["label"]): row["predicted"] == row["label"] for row in answers}


def _leveled(rows: Sequence[Row]) -> list[Row]:
    """The rows, marked where a paired bootstrap on the same images does not tell them from the best."""
    every = [row.right() for row in rows]
    found = [*rows]
    for place, own in enumerate(every[1:], 1):
        if own and own.keys() == every[0].keys():
            best, other = (np.array([one[image] for image in own]) for one in (every[0], own))
            found[place] = replace(rows[place], level=not told_apart(best, other))
    return found


def _rank(row: Row) -> tuple[bool, float, float]:
    loss = row.spread("val_loss")
    return (row.score is None, -(row.score or 0), loss.mean if loss else 0)
