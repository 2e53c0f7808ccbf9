"""What a sweep that was interrupted still lacks, trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from finetune import saved
from finetune.door import settings_of
from finetune.errors import RequestError
from finetune.report.terminal import say
from finetune.resuming import find_any
from finetune.settings import Settings
from finetune.sweep.jobs import folders, overrides_of
from finetune.sweep.plans import Plan, common, tell_apart
from finetune.sweep.train import train_all


def resume_sweep(folder: Path, console: Console) -> int:
    """Train the jobs of a sweep that have not finished and return the exit code.

    Interrupted jobs go on from their checkpoints, together as before; those that had failed, or finished no
    epoch, begin anew in their own folders. Finished jobs stay as they are.

    Raises:
        RequestError: the folder holds no jobs.
        Interrupted: again.
    """
    plans = _unfinished(folder)
    if not plans:
        say(console, "done", f"every job of {folder} has finished")
        return 0
    tell_apart(plans)
    groups = {common(plan.settings) for plan in plans if plan.settings and plan.going_on}
    for plan in plans:
        plan.together = plan.settings is not None and common(plan.settings) in groups
    for plan in plans:
        if plan.wrong:
            plan.fail(plan.wrong)
    train_all(plans, console)
    return max(plan.code for plan in plans)


def _unfinished(folder: Path) -> list[Plan]:
    """The jobs without a result, their folders as Hydra made them."""
    plans = []
    for place, job in enumerate(folders(folder)):
        status = (saved.summary_of(job) or {}).get("status")
        if status == "finished":
            continue
        plan = Plan(int(job.name) if job.name.isdigit() else place, job, overrides_of(job))
        try:
            plan.settings = _settings(job)
            going_on = None if status == "failed" else find_any(job)
            if going_on is None:
                _clear(job)
            elif going_on.together:
                plan.going_on = going_on
            else:
                plan.settings = plan.settings.model_copy(update={"resume": "auto"})
        except RequestError as error:
            plan.wrong, plan.settings = error, None
        plans.append(plan)
    return plans


def _settings(job: Path) -> Settings:
    if (job / "settings.json").is_file():
        return saved.settings_of(job)
    config = OmegaConf.load(job / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    return settings_of(config)


def _clear(job: Path) -> None:
    """Remove what an unfinished job has written, but not how Hydra made it."""
    for path in job.iterdir():
        if path.is_dir() and path.name != ".hydra":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
