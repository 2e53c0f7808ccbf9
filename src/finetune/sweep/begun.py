"""Before and after what Hydra runs in this process: a folder that is not used yet, and where a sweep lies."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from finetune.door import guarded
from finetune.errors import RequestError
from finetune.report.folder import refuse_used
from finetune.sweep.jobs import PLAN, is_sweep


class Begun(Callback):
    """Refuses a used folder, and remembers the config of a sweep, which Hydra tells callbacks alone.

    By the time a job is called Hydra has written what was asked for this time over what it was last time.
    """

    config: ClassVar[DictConfig | None] = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not config.get("resume"):
            _or_end(lambda: refuse_used(Path(os.path.relpath(config.hydra.run.dir))))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.runtime.choices["hydra/sweeper"] == "basic":  # a search goes on with new jobs
            _or_end(lambda: _refuse_sweep(Path(os.path.relpath(config.hydra.sweep.dir))))
            config.hydra.sweeper._target_ = "hydra_plugins.finetune_batched.sweeper.PlannedSweeper"
        Begun.config = config


def _refuse_sweep(folder: Path) -> None:
    if is_sweep(folder) and any(folder.glob("*/settings.json")):
        raise RequestError(
            f"hydra.sweep.dir={folder}: expected a new folder; this one holds a sweep's jobs"
            f" (finetune resume {shlex.quote(str(folder))} goes on with them)"
        )


def _or_end(check: Callable[[], None]) -> None:
    # Of what a callback raises Hydra makes a warning; of a folder that cannot be made it tells itself.
    with suppress(OmegaConfBaseException):
        code, _ = guarded(check)
        if code:
            raise SystemExit(code)


def folder() -> Path | None:
    """The folder of the sweep that this process ran; None where it ran none."""
    return None if Begun.config is None else Path(os.path.relpath(Begun.config.hydra.sweep.dir))


def forget() -> None:
    """Let nothing be left to go on with of a sweep that was wrong as a whole."""
    if sweep := folder():
        (sweep / PLAN).unlink(missing_ok=True)
    Begun.config = None


def end_workers() -> None:
    """End the processes of hydra/launcher=joblib, which would stay for minutes with all that they hold."""
    if Begun.config is not None and Begun.config.hydra.runtime.choices["hydra/launcher"] == "joblib":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)
