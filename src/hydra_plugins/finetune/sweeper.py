"""Hydra's sweeper `basic`, which leaves a list of all jobs before the first of them begins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from finetune.errors import RequestError
from finetune.runs.folder import PLAN
from finetune.sweep.planned import Planned, folder_of, own_configs, plan, write_plan


class ListedSweeper(BasicSweeper):
    """Lists the jobs as soon as they are known, and again, with their settings, once they are composed."""

    config: Any  # from here on it is set

    def split_arguments(  # type: ignore[override]  # Hydra calls it so: there it needs no instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs of each batch."""
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        folder, wrong = folder_of(self.config), own_configs(self.config.hydra.runtime.config_sources)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = enumerate(chain.from_iterable(batches))
        write_plan(folder, [Planned(folder / str(number), job, wrong=wrong) for number, job in jobs])
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """With the first batch compose all of them: what is wrong with the last is told before one trains."""
        if self.batch_index > 1:
            return
        assert self.overrides is not None
        assert self.hydra_context is not None
        jobs: list[Any] = list(chain.from_iterable(self.overrides))
        folder = folder_of(self.config)
        try:
            write_plan(folder, plan(self.hydra_context.config_loader, self.config, jobs))
        except (HydraException, RequestError):  # no job will begin
            (folder / PLAN).unlink()
            raise
