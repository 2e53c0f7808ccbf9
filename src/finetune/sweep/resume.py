"""What a sweep that was interrupted still lacks, trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from finetune.atomic import write_atomically
from finetune.config.schema import Settings
from finetune.errors import RequestError
from finetune.runs.folder import FOLDS, PHASES, one_writer
from finetune.runs.resume import read_resume_state
from finetune.runs.settings import read_settings
from finetune.runs.summary import read_summary
from finetune.say import Screen, say
from finetune.sweep.planned import Planned, planned
from finetune.sweep.plans import Plan, common, refuse_several, tell_apart
from finetune.sweep.train import train_all


def resume_sweep(folder: Path, console: Screen) -> int:
    """Train the jobs of a sweep that have not finished and return the exit code.

    Jobs that were interrupted, or failed as by a full disk, go on from their checkpoints, together as before;
    those that finished no epoch or never began, begin in their own folders. Finished jobs stay as they are.

    Raises:
        RequestError: there are no jobs, or what tells of them is damaged.
        Interrupted: again.
    """
    with one_writer(folder):
        plans = _unfinished(folder)
        if not plans:
            say(console, "done", f"every job of {folder} has finished")
            return 0
        tell_apart(plans)
        groups = {common(plan.settings) for plan in plans if plan.settings and plan.resume_state}
        for plan in plans:
            plan.together = plan.settings is not None and common(plan.settings) in groups
            if plan.wrong:
                plan.fail(plan.wrong)
        train_all(plans, console)
        return max(plan.code for plan in plans)


def _unfinished(folder: Path) -> list[Plan]:
    """The jobs without a result, in folders that hold nothing but what Hydra writes there, or a run."""
    plans = []
    for place, job in enumerate(planned(folder)):
        if (read_summary(job.folder) or {}).get("status") == "finished":
            continue
        plan = Plan(int(job.folder.name) if job.folder.name.isdecimal() else place, job.folder, job.overrides)
        try:
            kept = (job.folder / "settings.json").is_file()
            plan.settings = read_settings(job.folder) if kept else job.checked()
            refuse_several(plan.settings)
            # What phases leave in the job's folder is the last one's.
            resume_state = None if plan.settings.phased else read_resume_state(job.folder)
            if resume_state is None and not any((job.folder / one).is_dir() for one in (FOLDS, PHASES)):
                _make_anew(job, plan.settings)
            elif resume_state and resume_state.together:
                plan.resume_state = resume_state
            else:
                plan.settings = plan.settings.model_copy(update={"resume": "auto"})
        except RequestError as error:
            job.folder.mkdir(parents=True, exist_ok=True)
            plan.wrong, plan.settings = error, None
        plans.append(plan)
    return plans


def _make_anew(job: Planned, settings: Settings) -> None:
    """Make the folder of a job that is to begin, as Hydra would, whatever of it there is."""
    written = job.folder / ".hydra"
    written.mkdir(parents=True, exist_ok=True)
    for path in job.folder.iterdir():
        if path.is_dir() and path != written:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    for name, value in (("config", settings.model_dump()), ("overrides", job.overrides)):
        write_atomically(written / f"{name}.yaml", yaml.safe_dump(value, sort_keys=False).encode())
