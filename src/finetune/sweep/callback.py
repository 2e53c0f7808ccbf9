"""What is refused before Hydra writes anything: a used folder, settings of its own; and a sweep, noted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
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
# What Hydra wrote in a run's folder, before it writes there what is asked for now.
BEFORE: ContextVar[dict[Path, bytes]] = ContextVar("before")
# What would move relative paths, write over a run or end in Hydra itself, and what is expected.
HYDRAS = {
    r"hydra\.job\.chdir=(?!(?i:false|null)$).*": "false; relative paths start where the command is typed",
    r"hydra\.(sweeper|launcher)=.*": "{choice}, as it is a choice",
    r"hydra\.sweeper\.params=.*": "-m with what to sweep over as on any command line: -m seed=1,2",
    r"hydra\.sweeper\.max_batch_size=(?!null$|0*[1-9]\d*$).*": "1 or more, or null",
    r"hydra\.(run|sweep)\.dir=(null)?": "a folder",
    r"hydra\.mode=(?!RUN$|MULTIRUN$|null$).*": "RUN or MULTIRUN",
    r"hydra\.callbacks(\.folder.*)?(=.*)?": "it to stay, as it refuses used folders",
}


def refuse_hydras(overrides: Sequence[str]) -> None:
    """Raise RequestError where one of a command line's overrides is what HYDRAS has."""
    for override in overrides:
        plain = re.sub("['\"]", "", override.lstrip("+~"))
        for pattern, expected in HYDRAS.items():
            if re.fullmatch(pattern, plain, re.DOTALL):
                wanted = expected.format(choice=plain.replace(".", "/", 1))
                raise RequestError(f"{override.lstrip('+')}: expected {wanted}")


class FolderCallback(Callback):
    """Refuses a used folder before Hydra writes to it, and notes the config of a sweep.

    By the time a job is called Hydra has written what was asked for this time over what it was last time.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with suppress(OmegaConfBaseException):  # of a folder that cannot be made Hydra tells itself
            folder = Path(os.path.relpath(config.hydra.run.dir))
            begun = (folder / "settings.json").is_file()
            BEFORE.set({file: file.read_bytes() for file in folder.glob(".hydra/*.yaml") if begun})
            if config.get("resume"):
                return
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
