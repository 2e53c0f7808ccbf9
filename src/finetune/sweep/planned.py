"""All jobs that a sweep is to run, on disk before the first of them begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict

from finetune.atomic import read_json, write_sealed
from finetune.config.compose import GROUPS, compose_config, settings_from_config
from finetune.config.messages import known_keys, validate
from finetune.config.schema import Settings
from finetune.errors import RequestError, one_line
from finetune.runs.folder import PLAN
from finetune.runs.settings import completed
from finetune.runs.sweeps import job_folders, overrides_of, read_yaml

OWN_CONFIGS = "this sweep has configs of its own, not read yet when it was stopped; its command begins again"


@dataclass(frozen=True)
class Planned:
    """A job of a sweep, begun or not.

    settings: all of them, interpolated once, as the sweep was planned; None where it was stopped before that.
    wrong: why there are none and never will be.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    folder: Path
    overrides: list[str]
    settings: dict[str, Any] | None = None
    wrong: str | None = None

    def checked(self) -> Settings:
        """Its settings, composed without interpolation if it was stopped too early; or RequestError."""
        if self.wrong:
            raise RequestError(self.wrong)
        if self.settings is not None:
            return validate(completed(self.settings))
        for one in self.overrides:
            check_stored(one)
        values: Any = OmegaConf.to_container(compose_config(self.overrides), resolve=False)
        return validate(values)


class _File(BaseModel, extra="forbid"):
    searched: bool
    jobs: list[Planned]


def check_stored(override: str, also: Sequence[str] = ()) -> None:
    """Raise RequestError where a stored override would do more than set a value.

    What lies in a folder may be somebody else's: it is neither interpolated, nor does it choose what else is
    read or run. also: keys that may be set beside our own.
    """
    key, _, value = override.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    away = (key in GROUPS or "/" in key) and ("/" in value or ".." in value)
    if "${" in override.replace("\\", "") or away or key not in (*known_keys(), *GROUPS, *also):
        raise RequestError(
            f"{override}: expected a plain value, as it was stored; what does more must be typed again"
        )


def folder_of(sweep: DictConfig) -> Path:
    """The folder of a sweep, by its config."""
    return Path(os.path.relpath(sweep.hydra.sweep.dir))


def plan(loader: ConfigLoader, sweep: DictConfig, jobs: Sequence[list[str]], first: int = 0) -> list[Planned]:
    """Compose jobs as Hydra will; one whose folder has another name than its number gets it as an override.

    sweep: its config. first: the number of the first job.

    Raises:
        RequestError: a job has no folder of its own within the sweep's.
        HydraException: an override is wrong.
    """
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    try:
        composed = [_composed(loader, sweep, overrides, n) for n, overrides in enumerate(jobs, first)]
    finally:
        hydra.cfg = before
    if not _own_folders(folder_of(sweep), [job.folder for job in composed]):
        raise _no_folder(sweep.hydra.sweep.dir)
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
        return Planned(folder / name, asked, settings_from_config(config).model_dump())
    except RequestError as error:
        return Planned(folder / name, asked, wrong=one_line(error))


def _no_folder(sweep: Path) -> RequestError:
    return RequestError(
        f"hydra.sweep.subdir: expected for each job a folder of its own within {sweep}, whose name is known"
        " before it begins, as ${hydra.job.num}"
    )


def write_plan(sweep: Path, jobs: Sequence[Planned], searched: bool = False) -> None:
    """Write the list atomically, of a search what was asked for so far; raises RunError where it cannot."""
    entries = [{**vars(job), "folder": str(job.folder.relative_to(sweep))} for job in jobs]
    write_sealed(sweep / PLAN, {"searched": searched, "jobs": entries})


def searched(sweep: Path) -> bool:
    """Whether a sweep is a search, whose study knows what comes next."""
    return _read(sweep).searched if (sweep / PLAN).is_file() else hydra_request(sweep)[0] != "basic"


def planned(sweep: Path) -> list[Planned]:
    """A sweep's jobs in order, of one without a list those that have begun; raises RequestError of none."""
    if not (jobs := list_planned(sweep)):
        raise RequestError(f"{sweep}: expected the folder of a sweep; there are no jobs in it")
    return jobs


def list_planned(sweep: Path) -> list[Planned]:
    """The same; there may be none."""
    if (sweep / PLAN).is_file():
        jobs = _read(sweep).jobs
        return [replace(job, folder=sweep / job.folder) for job in jobs]
    return [Planned(job, overrides_of(job)) for job in job_folders(sweep)]


def _read(sweep: Path) -> _File:
    what = "the jobs of a sweep, each in a folder of its own in there"
    values = read_json(sweep / PLAN, what)
    with suppress(ValueError):  # of another shape; a name that no folder can have
        held = _File.model_validate(values)
        if _own_folders(sweep, [sweep / job.folder for job in held.jobs]):
            return held
    raise RequestError(f"{sweep / PLAN}: expected {what}")


def _own_folders(sweep: Path, folders: list[Path]) -> bool:
    """Whether each of them lies, links followed, in a place of its own within the sweep's."""
    places, inside = {folder.resolve() for folder in folders}, sweep.resolve()
    return len(places) == len(folders) and all(inside in place.parents for place in places)


class Asked(NamedTuple):
    """What Hydra noted of a sweep: its sweeper, and the overrides."""

    sweeper: str
    hydra: list[str]
    task: list[str]


def hydra_request(sweep: Path) -> Asked:
    """Read it, with nothing interpolated; raises RequestError where it is damaged."""
    held = read_yaml(file := sweep / "multirun.yaml")
    try:
        chosen, overrides = held["hydra"]["runtime"]["choices"], held["hydra"]["overrides"]
        own, task = ([str(one) for one in overrides[kind]] for kind in ("hydra", "task"))
        return Asked(chosen["hydra/sweeper"], own, task)
    except (AttributeError, KeyError, TypeError):
        raise RequestError(f"{file}: expected what Hydra wrote there; it is damaged") from None


def own_configs(sources: Iterable[Mapping[str, Any]]) -> str | None:
    """What is wrong with composing a job again where more than the shipped configs was read."""
    return OWN_CONFIGS if {one["provider"] for one in sources} - {"hydra", "main", "schema"} else None
