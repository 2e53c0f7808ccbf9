"""Hydra's launcher `batched`: plans every job of a sweep, then trains together what can be."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

ConfigStore.instance().store(
    group="hydra/launcher",
    name="batched",
    node={"_target_": "hydra_plugins.finetune_batched.launcher.BatchedLauncher"},
    provider="finetune",
)


class BatchedLauncher(Launcher):
    """Calls the task for each job, which hands back its plan; then trains the plans of all jobs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from finetune.settings import SECTIONS  # every app of Hydra imports this module
        from finetune.validation import known_keys

        from .composing import OncePerChoice

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        # The sweeper, too, composes every job, to see that it can be.
        loader = hydra_context.config_loader
        values = frozenset(known_keys()) - SECTIONS.keys() | {"hydra.sweep.subdir"}
        once = OncePerChoice(loader, values)
        loader.load_sweep_config = once  # type: ignore[method-assign]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train a batch of jobs; each returns its score in validation, None where it failed or has none.

        Raises:
            SystemExit: the sweep was interrupted, or is wrong as a whole.
        """
        from finetune.launch import train_plans

        setup_globals()
        returns = [
            self._plan(number, list(overrides))
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        plans = [one.return_value for one in returns]
        # What comes in batches goes on after one that was wrong.
        whole = self.config.hydra.runtime.choices["hydra/sweeper"] == "basic"
        train_plans(plans, whole and self.config.hydra.sweeper.max_batch_size is None)
        for one, plan in zip(returns, plans, strict=True):
            one.return_value = plan.score
        return returns

    def _plan(self, number: int, overrides: list[str]) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
