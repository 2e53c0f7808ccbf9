"""Lightning's callbacks and loggers by name, an entry each; imported where a run trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from finetune.choices.given import Table
from finetune.errors import RequestError


def _lightning(path: str, **options: Any) -> Any:
    return resolve_name(f"pytorch_lightning.{path}")(**options)


def _csv(folder: Path) -> Any:
    """Lightning's, in a folder of its own where a run goes on: it empties the one it is given."""
    version = f"csv-{before + 1}" if (before := len([*folder.glob("csv*")])) else "csv"
    return _lightning("loggers.CSVLogger", save_dir=folder, name="", version=version)


# What makes each, of the run's folder and name; the run itself writes for TensorBoard.
CALLBACKS: Table[Callable[[Path, str], Any]] = Table(
    learning_rate=lambda *_: _lightning("callbacks.LearningRateMonitor"),
    device_stats=lambda *_: import_module("psutil") and _lightning("callbacks.DeviceStatsMonitor"),
)
LOGGERS: Table[Callable[[Path, str], Any]] = Table(
    tensorboard=lambda *_: None,
    csv=lambda folder, _: _csv(folder),
    wandb=lambda folder, run: _lightning("loggers.WandbLogger", save_dir=folder, name=run),
    mlflow=lambda _, run: _lightning(
        "loggers.MLFlowLogger",
        experiment_name="finetune",
        run_name=run,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),  # where `mlflow ui` looks
    ),
)


def make(setting: str, table: Table[Any], names: Sequence[str], folder: Path) -> list[Any]:
    """The callbacks or loggers of these names; RequestError where a package lacks."""
    try:
        return [one for name in names if (one := table[name](folder, "-".join(folder.parts[-2:])))]
    except ModuleNotFoundError as error:
        raise RequestError(f"{setting}={','.join(names)}: {str(error).splitlines()[0]}") from None
