"""Which sweep Hydra runs: of its folder it tells callbacks alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Begun(Callback):
    """Remembers the config of the sweep that this process began."""

    config: ClassVar[DictConfig | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        Begun.config = config


def folder() -> Path | None:
    """The folder of the sweep that this process ran; None where it ran none."""
    return None if Begun.config is None else Path(os.path.relpath(Begun.config.hydra.sweep.dir))
