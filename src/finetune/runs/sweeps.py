"""Sweeps on disk: the folders of their jobs, and what those tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from finetune.atomic import read_json
from finetune.cells import read_table
from finetune.config.schema import flat
from finetune.errors import RequestError, brief, counted, one_line, shown
from finetune.runs.folder import FOLDS, LATEST, PHASES, PLAN, find_run, is_phase, pointer, sweep_of
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    overrides: what its command line would be, key by key. status: finished, failed, interrupted or unfinished
    (it waits, runs, or was killed). kept: what its best epoch is best by. val, test: the metrics of a
    finished one, None where there is no such split. seconds: how long it took. files: SHA-256 of its tables.
    """

    folder: Path
    overrides: dict[str, str]
    status: str
    reason: str
    kept: str
    val: dict[str, Any] | None
    test: dict[str, Any] | None
    seconds: float | None
    files: Mapping[str, str]


def find_sweep(sweep: str) -> Path:
    """The folder that `SWEEP` means, a path or `latest`, the one begun last; raises RequestError of none."""
    folder = Path(sweep)
    if last := pointer(sweep):
        if not (begun := _begun(last)):
            raise RequestError(f"latest: expected a sweep in {last.with_name('sweeps')}; there is none here")
        return begun[max(begun)]
    if not folder.is_dir():
        raise RequestError(f"{folder}: expected the folder of a sweep; there is no such folder")
    return folder


def find_latest(file: Path) -> Path:
    """What came last, by the file that names the newest run: that run, or the sweep that it is of."""
    begun = _begun(file)
    if begun and not (file.exists() and file.stat().st_mtime > max(begun)):
        return begun[max(begun)]
    return find_run("latest" if file == LATEST else str(file))


def _begun(file: Path) -> dict[float, Path]:
    """The sweeps in folders that were made for them, and that of the newest run, by when they began."""
    plans = (plan for name in (PLAN, "multirun.yaml") for plan in file.parent.glob(f"sweeps/*/*/{name}"))
    begun = {plan.stat().st_mtime: plan.parent for plan in plans}
    with suppress(RequestError):  # a run that has gone
        if sweep := sweep_of(find_run(str(file))):
            begun[file.stat().st_mtime] = sweep
    return begun


def logdir(folder: Path) -> Path:
    """What TensorBoard should show with a run: the sweep it is of, all runs in `outputs`, or it alone."""
    return sweep_of(folder) or (LATEST.parent if LATEST.parent in folder.parents else folder)


def job_folders(sweep: Path) -> list[Path]:
    """The folders of jobs in a sweep's, in the order of their numbers."""
    # Hydra opens its file before it writes: an empty one is of a process that was killed.
    found = [file.parents[1] for file in sweep.rglob(".hydra/overrides.yaml") if file.stat().st_size]
    # Hydra makes a folder for a request that is refused, too; in a sweep such a job may wait for its turn.
    found = [job for job in found if (job / "settings.json").exists() or sweep_of(job)]
    return sorted(found, key=lambda job: in_order(str(job.relative_to(sweep))))


def overrides_of(job: Path) -> list[str]:
    """What was asked for, as on the command line; raises RequestError where its file is damaged."""
    overrides = read_yaml(file := job / ".hydra" / "overrides.yaml")
    if not isinstance(overrides, list):
        raise RequestError(f"{file}: expected what Hydra wrote there, a list; it is damaged")
    return list(map(str, overrides))


def name_in_sweep(job: Path) -> str:
    """What a job has that not all jobs of its sweep have, as lr=0.1,seed=0; empty of a run by itself."""
    sweep = sweep_of(job) or job
    if not (file := sweep / PLAN).is_file():
        return ""
    try:
        planned = _read_plan(file, file.stat().st_ino, file.stat().st_mtime_ns)["jobs"]
        jobs = {sweep / one["folder"]: one["overrides"] for one in planned}
        shared = set.intersection(*map(set, jobs.values()))
    except (KeyError, TypeError):
        raise RequestError(f"{file}: expected a sweep's jobs; it holds something else") from None
    own = [unescaped(one).partition("=") for one in jobs.get(job, ()) if one not in shared]
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in own)
    return shown(name.replace("/", "_")).encode()[:200].decode(errors="ignore")  # a file system counts bytes


@lru_cache(maxsize=1)
def _read_plan(file: Path, *_: int) -> dict[str, Any]:
    """A sweep's plan, which may be long: read once, until it is another."""
    return read_json(file, "a sweep's jobs")


def unescaped(override: str) -> str:
    """An override without the backslashes that Hydra's grammar wants: freeze=through:layer3."""
    return re.sub(r"\\(.)", r"\1", override)


def read_yaml(file: Path) -> Any:
    """What a file of Hydra's holds, nothing of it interpolated; raises RequestError where it is damaged."""
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise RequestError(f"{file}: expected what Hydra wrote there; damaged: {one_line(error)}") from None


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def ranges(names: Iterable[str]) -> str:
    """Jobs by their names, in their order and few words: 0-3, 7, 10; the first where they are many."""
    runs: list[list[str]] = []
    for name in sorted(names, key=in_order):
        if runs and name.isdecimal() and runs[-1][-1].isdecimal() and int(name) == int(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return brief([run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs], 20)


def read_job(folder: Path, asked: list[str]) -> SweepJob:
    """The job in a folder, of which that was asked for; raises RequestError of a damaged summary."""
    summary = read_summary(folder) or {}
    overrides = {
        key.lstrip("+~"): value
        for key, _, value in (unescaped(one).partition("=") for one in summary.get("overrides") or asked)
    }
    status = summary.get("status", "unfinished")
    return SweepJob(
        folder,
        overrides,
        status=status,
        reason="" if status == "finished" else summary.get("reason") or _how_far(folder),
        kept=summary.get("best", "accuracy"),
        val=summary.get("val"),
        test=summary.get("test"),
        seconds=summary.get("timing", {}).get("total"),
        files=summary.get("files", {}),
    )


def read_runs(folder: Path) -> list[SweepJob]:
    """Every run below a folder that is no sweep's, by all its settings; raises RequestError of none."""
    found = [file.parent for file in folder.rglob("settings.json")]
    found = [run for run in found if not is_phase(run, FOLDS)]  # which are a run's own
    own = [run for run in found if not any(part[0] == "." for part in run.relative_to(folder).parts)]
    runs = sorted(own, key=lambda run: in_order(str(run)))
    if not runs:
        raise RequestError(f"{folder}: expected the folder of a sweep, or of runs; there are no jobs in it")
    asked = {run: flat(read_settings(run).model_dump()) for run in runs}
    return [
        replace(read_job(run, []), overrides={key: str(value) for key, value in settings.items()})
        for run, settings in asked.items()
    ]


def counts_epochs(curves: list[dict[str, str]]) -> bool:
    """Whether the rows of metrics.csv are those of the epochs from the first one on."""
    return [row.get("epoch") for row in curves] == [str(epoch) for epoch in range(1, len(curves) + 1)]


def _how_far(folder: Path) -> str:
    """What an unfinished job has done: metrics.csv has a row for each epoch."""
    if not (folder / "settings.json").exists():
        return "not begun"
    if phases := [*folder.glob(f"{PHASES}/*/settings.json")]:
        return f"in phase {len(phases)}"
    rows = read_table(folder / "metrics.csv")
    if not counts_epochs(rows):
        return "metrics.csv is damaged; finetune resume mends it"
    return f"{len(rows)} of {counted(read_settings(folder).epochs, 'epoch')} so far"
