"""A sweep's jobs composed before the first of them begins, in the process that was asked for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from finetune.config.compose import settings_from_config
from finetune.errors import RequestError, one_line
from finetune.sweep.planned import Planned


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
    inside = Path(os.path.abspath(sweep.hydra.sweep.dir))
    places = {Path(os.path.abspath(job.folder)) for job in composed}
    if len(places) < len(composed) or not all(inside in place.parents for place in places):
        raise _no_folder(sweep.hydra.sweep.dir)
    return composed


def _composed(loader: ConfigLoader, sweep: DictConfig, overrides: list[str], number: int) -> Planned:
    config = loader.load_sweep_config(sweep, list(overrides))
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # what ${hydra:…} looks into
    folder = Path(os.path.relpath(sweep.hydra.sweep.dir))
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
        quoted = name.replace("\\", "\\\\").replace("'", "\\'")
        overrides.append(f"hydra.sweep.subdir='{quoted}'")
    try:
        return Planned(folder / name, asked, settings_from_config(config).model_dump())
    except RequestError as error:
        return Planned(folder / name, asked, wrong=one_line(error))


def _no_folder(sweep: Path) -> RequestError:
    return RequestError(
        f"hydra.sweep.subdir: expected for each job a folder of its own within {sweep}, whose name is known"
        " before it begins, as ${hydra.job.num}"
    )
