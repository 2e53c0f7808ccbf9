"""What Hydra calls for `-m`: a sweeper that lists all jobs, a launcher that trains together what can be."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from finetune.config.messages import known_keys
from finetune.config.schema import SECTIONS
from finetune.errors import RequestError
from finetune.runs.folder import is_sweep, one_writer
from finetune.sweep.planned import folder_of, plan, write_plan

ConfigStore.instance().store(
    group="hydra/launcher",
    name="batched",
    node={"_target_": "hydra_plugins.finetune.launcher.BatchedLauncher"},
    provider="finetune",
)


class ListedSweeper(BasicSweeper):
    """Hydra's `basic`; holds the sweep's folder, and lists all jobs in it before the first of them begins."""

    config: Any  # from here on they are set
    hydra_context: Any

    def sweep(self, arguments: list[str]) -> Any:
        folder = folder_of(self.config)
        if is_sweep(folder) and any(folder.rglob("settings.json")):
            raise RequestError(
                f"hydra.sweep.dir={folder}: expected a new folder; this one holds a sweep's jobs"
                f" (finetune resume {shlex.quote(str(folder))} goes on with them)"
            )
        with one_writer(folder):
            return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """With the first batch compose all of them: what is wrong with the last is told before one trains."""
        if self.batch_index > 1:
            return
        assert self.overrides is not None
        jobs: list[Any] = list(chain.from_iterable(self.overrides))
        write_plan(folder_of(self.config), plan(self.hydra_context.config_loader, self.config, jobs))


class BatchedLauncher(Launcher):
    """Has the task plan each job, then trains the plans of all jobs; the task is a `finetune.launch.Task`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task, self.config = hydra_context, task_function, config
        # The sweeper, too, composes every job, to see that it can be.
        loader = hydra_context.config_loader
        values = frozenset(known_keys()) - SECTIONS.keys() | {"hydra.sweep.subdir"}
        once = OncePerChoice(loader, values)
        loader.load_sweep_config = once  # type: ignore[method-assign]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train a batch of jobs, each returning its score in validation, if any; raises as `train_plans`."""
        from finetune.launch import train_plans  # every app of Hydra imports this module

        setup_globals()
        returns = [
            self._plan(number, list(overrides))
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        plans = [one.return_value for one in returns]
        train_plans(plans)
        for one, ended in zip(returns, plans, strict=True):
            one.return_value = ended.score
        return returns

    def _plan(self, number: int, overrides: list[str]) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        task: Any = self.task
        return run_job(
            hydra_context=self.hydra_context,
            task_function=task.plan,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


class OncePerChoice:
    """`ConfigLoader.load_sweep_config`: composed once for all jobs that differ in plain values only.

    A value cannot change what is composed, and Hydra sets values last. So they are set in a copy of what
    Hydra has composed without them, by Hydra's own function; each job costs a tenth of the time.

    values: the keys that are values; no group, nothing on which Hydra's own composing depends.
    """

    def __init__(self, loader: ConfigLoader, values: frozenset[str]) -> None:
        self.load, self.values = loader.load_sweep_config, values
        self.parse = cache(OverridesParser.create().parse_override)
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The config of one job."""
        overrides = [self.parse(text) for text in sweep_overrides]
        values = [one for one in overrides if self._is_value(one)]
        choice = tuple(one.input_line or "" for one in overrides if not self._is_value(one))
        if choice not in self.composed:
            self.composed[choice] = self.load(master_config, list(choice))
        config = copy.deepcopy(self.composed[choice])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        own = [one for one in overrides if not one.is_hydra_override()]
        config.hydra.overrides.task = [one.input_line for one in own]
        style = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            own, kv_sep=style.kv_sep, item_sep=style.item_sep, exclude_keys=style.exclude_keys
        )
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _is_value(self, override: Override) -> bool:
        plain = override.type == OverrideType.CHANGE and override.package is None
        return plain and override.key_or_group in self.values
