"""A run that several processes of this machine train, started by torch's elastic launcher."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from hydra.core.utils import env_override

from finetune.config.schema import Settings
from finetune.errors import Interrupted, RequestError, RunError
from finetune.runs.folder import interruptible
from finetune.runs.summary import read_summary
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.distributed import Rank

KINDS = {kind.__name__: kind for kind in (RequestError, RunError)}


def this_rank(settings: Settings) -> Rank | None:
    """This process's rank among those that train a run; None where they are still to be started.

    Raises:
        RequestError: the devices asked for are not there, or as many processes were not started.
    """
    return distributed.find_rank(_count(settings), settings.trainer.nodes)


def _count(settings: Settings) -> int:
    trainer = settings.trainer
    return devices.count(trainer.devices, devices.accelerator(trainer.accelerator))


def launch(settings: Settings, folder: Path, quiet: bool) -> dict[str, Any]:
    """Train in processes of their own, as many as `trainer.devices` says, and return the summary.

    Each begins with the settings alone, not with the command line: what began this process is not run again.

    Raises:
        RequestError, RunError, Interrupted: as the process at fault has told it.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    size = _count(settings)
    with TemporaryDirectory() as name, interruptible(folder):
        exchange = Path(name)
        request = {"settings": settings.model_dump(), "folder": str(folder), "quiet": quiet}
        (exchange / "request.json").write_text(json.dumps(request), encoding="utf-8")
        config = _config(size, name)
        os.mkfifo(exchange / "alive")
        alive = os.open(exchange / "alive", os.O_RDWR)  # closed with this process, however it ends
        hangup, logger = signal.getsignal(signal.SIGHUP), logging.getLogger("torch.distributed.elastic")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # our line says what there is to say
        try:
            # -P: else a file random.py in the working folder would be run in the place of Python's own.
            with env_override({"TORCHELASTIC_SIGNALS_TO_HANDLE": config.signals_to_handle}):
                elastic_launch(config, sys.executable)("-P", "-m", "finetune.worker", name)
        except ChildFailedError as error:
            _raise_cause(error.failures, size)
        finally:
            os.close(alive)
            logger.setLevel(level)
            signal.signal(signal.SIGHUP, hangup)
    summary = read_summary(folder)
    assert summary is not None
    return summary


def _config(size: int, folder: str) -> Any:
    """The launcher's settings for so many processes, which write what they print into a folder."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id="finetune",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": 0},
        local_addr="127.0.0.1",
        max_restarts=0,
        # The first one speaks; what the others print is shown where they are at fault.
        logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, size), Std.ERR)),
        signals_to_handle="SIGHUP",  # Ctrl-C and SIGTERM reach the agent as errors of ours
    )


def _raise_cause(failures: Mapping[int, Any], size: int) -> NoReturn:
    """Raise what ended the run: what a process told or, if none did, what became of it."""
    for failure in failures.values():
        kind, _, line = _told(failure)[0].partition(": ")
        if kind in KINDS:
            raise KINDS[kind](line)
        if kind == Interrupted.__name__:
            raise Interrupted(line, failure.exitcode)
    # One that was killed is noticed together with those that have lost touch with it.
    rank, failure = min(failures.items(), key=lambda item: (item[1].exitcode > 0, item[1].timestamp))
    print(_told(failure)[1], file=sys.stderr, end="")
    how = f"was killed ({failure.signal_name()})" if failure.exitcode < 0 else "failed"
    raise RunError(f"process {rank} of {size} {how}")


def _told(failure: Any) -> tuple[str, str]:
    """The error that a process has left word of, and its traceback."""
    if isinstance(failure.message, str):
        return "", ""
    return failure.message["message"], failure.message["extraInfo"]["py_callstack"]
