"""All jobs that a sweep is to run, on disk before the first of them begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import BaseModel

from finetune.atomic import read_json, write_sealed
from finetune.config.compose import GROUPS, compose_config
from finetune.config.messages import known_keys, validate
from finetune.config.schema import Settings, configs_folder
from finetune.errors import RequestError, one_line
from finetune.runs.folder import PLAN
from finetune.runs.settings import completed
from finetune.runs.sweeps import has_begun, in_order, job_folders, overrides_of, read_yaml

OWN_CONFIGS = "this sweep has configs of its own, not read yet when it was stopped; its command begins again"


@dataclass(frozen=True)
class Planned:
    """A job of a sweep, begun or not.

    settings: all of them, interpolated once, as the sweep was planned; None where it was stopped before that.
    wrong: why there are none and never will be.
    """

    folder: Path
    overrides: list[str]
    settings: dict[str, Any] | None = None
    wrong: str | None = None

    def checked(self) -> Settings:
        """Its settings; what the sweep was stopped too early for is composed, with nothing interpolated.

        Raises:
            RequestError: they are wrong.
        """
        if self.wrong:
            raise RequestError(self.wrong)
        if self.settings is not None:
            return validate(completed(self.settings))
        for one in self.overrides:
            check_stored(one)
        values: Any = OmegaConf.to_container(compose_config(self.overrides), resolve=False)
        return validate(values)


class _Entry(BaseModel, extra="forbid", strict=True):
    folder: str
    overrides: list[str]
    settings: dict[str, Any] | None
    wrong: str | None


class _File(BaseModel, extra="forbid", strict=True):
    searched: bool
    jobs: list[_Entry]


def check_stored(override: str, also: Sequence[str] = ()) -> None:
    """Raise RequestError where a stored override would do more than set a value.

    What lies in a folder may be somebody else's: it is neither interpolated, nor does it choose what else is
    read or run. also: keys that may be set beside our own.
    """
    key, _, value = override.lstrip("+~").partition("=")
    key = key.partition("@")[0]
    away = key in GROUPS and ("/" in value or ".." in value)
    if "${" in override.replace("\\", "") or away or key not in (*known_keys(), *GROUPS, *also):
        raise RequestError(
            f"{override}: expected a plain value, as it was stored; what does more must be typed again"
        )


def write_plan(sweep: Path, jobs: Sequence[Planned], searched: bool = False) -> None:
    """Write the list atomically; of a search it has what was asked for so far.

    Raises:
        RunError: it cannot be written.
    """
    entries = [{**vars(job), "folder": str(job.folder.relative_to(sweep))} for job in jobs]
    write_sealed(sweep / PLAN, {"searched": searched, "jobs": entries})


def searched(sweep: Path) -> bool:
    """Whether a sweep is a search, whose study knows what comes next."""
    return _read(sweep).searched if (sweep / PLAN).is_file() else hydra_request(sweep)[0] != "basic"


def planned(sweep: Path) -> list[Planned]:
    """The jobs of a sweep in the order of their numbers, those of an older one as Hydra would list them.

    Raises:
        RequestError: what tells of them is damaged, or there are none.
    """
    if not (jobs := list_planned(sweep)):
        raise RequestError(f"{sweep}: expected the folder of a sweep; there are no jobs in it")
    return jobs


def list_planned(sweep: Path) -> list[Planned]:
    """The same; there may be none."""
    if (sweep / PLAN).is_file():
        jobs = _read(sweep).jobs
        return [Planned(sweep / one.folder, one.overrides, one.settings, one.wrong) for one in jobs]
    if (sweep / "multirun.yaml").is_file():
        return _older(sweep)
    return [Planned(job, overrides_of(job)) for job in job_folders(sweep)]


def _read(sweep: Path) -> _File:
    file, inside = sweep / PLAN, sweep.resolve()
    what = "the jobs of a sweep, each in a folder of its own in there"
    try:
        held = _File.model_validate(read_json(file, what))
        places = {(sweep / one.folder).resolve() for one in held.jobs}
    except ValueError as error:  # of another shape; a name that no folder can have
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{file}: expected {what}") from None
    if len(places) < len(held.jobs) or not all(inside in place.parents for place in places):
        raise RequestError(f"{file}: expected {what}")
    return held


def _older(sweep: Path) -> list[Planned]:
    """Begun jobs by their folders; the others from what was asked for, with the numbers that are left."""
    noted = hydra_request(sweep)
    searched = noted.sweeper != "basic"
    known = {job: overrides_of(job) for job in job_folders(sweep) if searched or has_begun(job)}
    jobs = [Planned(job, overrides) for job, overrides in known.items()]
    left = list(known.values())
    free = (place for number in count() if (place := sweep / str(number)) not in known)
    wrong = own_configs(noted.sources)
    for one in _expanded(sweep, noted.params + noted.task) if not searched else []:
        if one in left:  # not by number: what is drawn by chance (shuffle) comes in another order
            left.remove(one)
        else:
            jobs.append(Planned(next(free), one, wrong=wrong))
    return sorted(jobs, key=lambda job: in_order(str(job.folder.relative_to(sweep))))


class Asked(NamedTuple):
    """What Hydra noted of a sweep: its sweeper, the overrides, the sweeper's own, where configs came from."""

    sweeper: str
    hydra: list[str]
    task: list[str]
    params: list[str]
    sources: list[dict[str, str]]


def hydra_request(sweep: Path) -> Asked:
    """Read it, with nothing interpolated.

    Raises:
        RequestError: it is damaged.
    """
    held = read_yaml(file := sweep / "multirun.yaml")
    try:
        hydra = held["hydra"]
        params = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
        overrides, runtime = hydra["overrides"], hydra["runtime"]
        own, task = ([str(one) for one in overrides[kind]] for kind in ("hydra", "task"))
        sources = [{"provider": str(one["provider"])} for one in runtime["config_sources"]]
        return Asked(runtime["choices"]["hydra/sweeper"], own, task, params, sources)
    except (AttributeError, KeyError, TypeError):
        raise RequestError(f"{file}: expected what Hydra wrote there; it is damaged") from None


def own_configs(sources: Iterable[Mapping[str, Any]]) -> str | None:
    """What is wrong with composing a job again where more than the shipped configs was read."""
    return OWN_CONFIGS if {one["provider"] for one in sources} - {"hydra", "main", "schema"} else None


def _expanded(sweep: Path, overrides: list[str]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        with hydra.initialize_config_dir(str(configs_folder().resolve()), version_base="1.3"):
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)
    except HydraException as error:
        raise RequestError(f"{sweep / 'multirun.yaml'}: {one_line(error)}") from None
    return jobs
