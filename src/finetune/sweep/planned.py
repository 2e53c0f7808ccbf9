"""All jobs that a sweep is to run, on disk before the first of them begins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter

from finetune.atomic import read_json, write_sealed
from finetune.config.compose import settings_from_config
from finetune.config.messages import validate
from finetune.config.schema import Settings
from finetune.errors import RequestError, one_line
from finetune.runs.folder import PLAN
from finetune.runs.settings import completed
from finetune.runs.sweeps import job_folders, overrides_of
from finetune.sweep.plans import refuse_several

NO_PLAN = f"its sweep has no {PLAN}, so nothing but its command can begin it"


@dataclass(frozen=True)
class Planned:
    """A job of a sweep, begun or not.

    settings: all of them, interpolated once, as the sweep was planned; None where they are not known.
    wrong: why they are not.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    folder: Path
    overrides: list[str]
    settings: dict[str, Any] | None = None
    wrong: str | None = None

    def checked(self) -> Settings:
        """Its settings; raises RequestError where they are wrong or not known."""
        if self.settings is None:
            raise RequestError(self.wrong or "its settings are not known")
        return validate(completed(self.settings))


def folder_of(sweep: DictConfig) -> Path:
    """The folder of a sweep, by its config."""
    return Path(os.path.relpath(sweep.hydra.sweep.dir))


def plan(
    loader: ConfigLoader, sweep: DictConfig, jobs: Sequence[list[str]], first: int | None = None
) -> list[Planned]:
    """Compose jobs as Hydra will; one whose folder has another name than its number gets it as an override.

    sweep: its config. first: the number of the first job; None where these stand for all of the sweep.

    Raises:
        RequestError: there is none, a job has no folder of its own within the sweep's, or with all that there
            are the same is wrong by their settings alone.
        HydraException: an override is wrong.
    """
    if not jobs:
        sought = " ".join(one for one in sweep.hydra.overrides.task if "(" in one)  # a range, or a pattern
        raise RequestError(f"{sought}: expected one value or more of each; there is none")
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    try:
        composed = [_composed(loader, sweep, overrides, n) for n, overrides in enumerate(jobs, first or 0)]
    finally:
        hydra.cfg = before
    if not _own_folders(folder_of(sweep), [job.folder for job in composed]):
        raise _no_folder(sweep.hydra.sweep.dir)
    if first is None and (wrong := composed[0].wrong) and all(job.wrong == wrong for job in composed):
        raise RequestError(wrong)
    return composed


def _composed(loader: ConfigLoader, sweep: DictConfig, overrides: list[str], number: int) -> Planned:
    config = loader.load_sweep_config(sweep, list(overrides))
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # what ${hydra:…} looks into
    folder = folder_of(sweep)
    with open_dict(config):
        config.hydra.job.num = number
        if config.hydra.runtime.choices["hydra/launcher"] in ("basic", "batched"):
            config.hydra.job.id = number  # other launchers learn it from the machine that runs the job
        try:
            name = str(config.hydra.sweep.subdir)
        except OmegaConfBaseException:
            raise _no_folder(folder) from None
        config.hydra.runtime.output_dir = os.path.abspath(folder / name)
    asked = list(config.hydra.overrides.task)
    if name != str(number):  # it may tell the time
        overrides.append(f"hydra.sweep.subdir={QuotedString(name, Quote.single).with_quotes()}")
    try:
        settings = settings_from_config(config)
        refuse_several(settings)
        return Planned(folder / name, asked, settings.model_dump())
    except RequestError as error:
        return Planned(folder / name, asked, wrong=one_line(error))


def _no_folder(sweep: Path) -> RequestError:
    return RequestError(
        f"hydra.sweep.subdir: expected for each job a folder of its own within {sweep}, whose name is known"
        " before it begins, as ${hydra.job.num}"
    )


def write_plan(sweep: Path, jobs: Sequence[Planned]) -> None:
    """Write the list atomically, of a search what was asked for so far; raises RunError where it cannot."""
    entries = [{**vars(job), "folder": str(job.folder.relative_to(sweep))} for job in jobs]
    write_sealed(sweep / PLAN, {"jobs": entries})


def planned(sweep: Path) -> list[Planned]:
    """A sweep's jobs in order, of one without a list those that have begun; raises RequestError of none."""
    if not (jobs := list_planned(sweep)):
        raise RequestError(f"{sweep}: expected the folder of a sweep; there are no jobs in it")
    return jobs


def list_planned(sweep: Path) -> list[Planned]:
    """The same; there may be none."""
    if (sweep / PLAN).is_file():
        return [replace(job, folder=sweep / job.folder) for job in _read(sweep)]
    return [Planned(job, overrides_of(job), wrong=NO_PLAN) for job in job_folders(sweep)]


def _read(sweep: Path) -> list[Planned]:
    what = "the jobs of a sweep, each in a folder of its own in there"
    values = read_json(sweep / PLAN, what)
    with suppress(KeyError, ValueError):  # of another shape; a name that no folder can have
        jobs = TypeAdapter(list[Planned]).validate_python(values["jobs"])
        if _own_folders(sweep, [sweep / job.folder for job in jobs]):
            return jobs
    raise RequestError(f"{sweep / PLAN}: expected {what}")


def _own_folders(sweep: Path, folders: list[Path]) -> bool:
    """Whether each of them lies, links followed, in a place of its own within the sweep's."""
    places, inside = {folder.resolve() for folder in folders}, sweep.resolve()
    return len(places) == len(folders) and all(inside in place.parents for place in places)
