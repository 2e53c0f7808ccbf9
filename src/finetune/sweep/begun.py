"""The sweep that Hydra runs in this process: where it lies, and what it leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Begun(Callback):
    """Remembers the config of the sweep that this process began; Hydra tells it callbacks alone."""

    config: ClassVar[DictConfig | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Begun.config = config


def folder() -> Path | None:
    """The folder of the sweep that this process ran; None where it ran none."""
    return None if Begun.config is None else Path(os.path.relpath(Begun.config.hydra.sweep.dir))


def end_workers() -> None:
    """End the processes of hydra/launcher=joblib, which would stay for minutes with all that they hold."""
    if Begun.config is not None and Begun.config.hydra.runtime.choices["hydra/launcher"] == "joblib":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)
