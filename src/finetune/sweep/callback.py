"""What Hydra calls before a run or a sweep begins: a folder must not be used yet, and a sweep is noted."""

from __future__ import annotations

import os
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from finetune.errors import RequestError, tell
from finetune.runs.folder import refuse_used

# The config of the sweep that a command runs: Hydra gives it to callbacks and plugins alone.
SWEEP: ContextVar[DictConfig | None] = ContextVar("sweep", default=None)
# What Hydra wrote of a run that is to be resumed, before it wrote what is asked for now.
BEFORE: ContextVar[dict[Path, bytes] | None] = ContextVar("before", default=None)


class FolderCallback(Callback):
    """Refuses a used folder before Hydra writes to it, and notes the config of a sweep.

    By the time a job is called Hydra has written what was asked for this time over what it was last time.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        BEFORE.set(None)
        if config.get("resume"):
            written = Path(str(config.hydra.run.dir)) / ".hydra"
            if (written.parent / "settings.json").is_file():
                BEFORE.set({file: file.read_bytes() for file in written.glob("*.yaml")})
            return
        with suppress(OmegaConfBaseException):  # of a folder that cannot be made Hydra tells itself
            folder = Path(os.path.relpath(config.hydra.run.dir))
            images = os.path.expanduser(str(config.data.get("root")))
            try:
                refuse_used(folder)
                if folder.is_dir() and folder.resolve() == Path(images).resolve():
                    raise RequestError(f"hydra.run.dir={folder}: expected another folder than data.root")
            except RequestError as error:  # of what a callback raises Hydra would make a warning
                raise SystemExit(tell(error)) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.runtime.choices["hydra/sweeper"] == "basic":  # a search goes on with new jobs
            config.hydra.sweeper._target_ = "hydra_plugins.finetune.launcher.ListedSweeper"
        SWEEP.set(config)
