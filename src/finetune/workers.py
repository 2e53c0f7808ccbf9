"""A run that several processes of this machine train, started by torch's elastic agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.utils import env_override

from finetune.config.schema import Settings
from finetune.errors import Interrupted, RequestError, RunError
from finetune.runs.folder import interruptible
from finetune.runs.summary import read_summary
from finetune.training import device as devices

LOCAL = "127.0.0.1"


def count(settings: Settings) -> int:
    """How many processes of this machine train a run; raises RequestError where there are no such devices."""
    trainer = settings.trainer
    return devices.count(trainer.devices, devices.accelerator(trainer.accelerator))


def launch(settings: Settings, folder: Path, quiet: bool) -> dict[str, Any]:
    """Train in processes of their own, as many as `trainer.devices` says, and return the summary.

    Each begins with the settings alone, not with the command line: what began this process is not run again.
    RequestError, RunError, Interrupted: as the first process that failed has told it.
    """
    size = count(settings)
    request = {"settings": settings.model_dump(), "folder": str(folder), "quiet": quiet}
    with TemporaryDirectory() as name:
        exchange = Path(name)
        (exchange / "request.json").write_text(json.dumps(request), encoding="utf-8")
        os.mkfifo(exchange / "alive")
        with interruptible(folder), _quiet_agent():
            alive = os.open(exchange / "alive", os.O_RDWR)  # closed with this process, however it ends
            try:
                failures = _agent(size, name).run().failures
            finally:
                os.close(alive)
        if failures:
            # The first one noticed; it ended the others.
            rank, failure = min(failures.items(), key=lambda one: one[1].exitcode == -signal.SIGTERM)
            raise _cause(failure, f"process {rank} of {size}", exchange)
    summary = read_summary(folder)
    assert summary is not None
    return summary


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Leave signals to us, as errors that end the agent, and keep what it logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with env_override({"TORCHELASTIC_SIGNALS_TO_HANDLE": "none"}):
            yield
    finally:
        logging.disable(before)


def _agent(size: int, exchange: str) -> Any:
    """What starts so many workers, and ends all of them once one has failed."""
    # Imported late, as on macOS this logs a warning.
    from torch.distributed import TCPStore
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    server = socket.create_server((LOCAL, 0))
    port = server.getsockname()[1]
    rendezvous = StaticTCPRendezvous(LOCAL, port, rank=0, world_size=1, run_id="finetune", timeout=60)
    # The one that it would make listens on every address of the machine.
    rendezvous._store = TCPStore(
        LOCAL, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach()
    )
    spec = WorkerSpec(
        role="trainer",
        local_world_size=size,
        entrypoint=sys.executable,
        # -P: else a file random.py in the working folder would be run in the place of Python's own.
        args=("-P", "-m", "finetune.worker", exchange),
        rdzv_handler=rendezvous,
        max_restarts=0,
        monitor_interval=0.05,
    )
    # The first worker speaks; what the others print is shown where they are at fault.
    return LocalElasticAgent(spec, DefaultLogsSpecs(exchange, dict.fromkeys(range(1, size), Std.ALL)))


def _cause(failure: Any, who: str, exchange: Path) -> RequestError | RunError:
    """The error that ended a run: as the worker has told it or, if it has not, what became of it."""
    told, code = failure.error_file_data, failure.exitcode
    if "line" in told:
        if code > 128:
            return Interrupted(told["line"], code)
        return RequestError(told["line"]) if code == RequestError.exit_code else RunError(told["line"])
    print(told.get("traceback", ""), file=sys.stderr, end="")
    for printed in exchange.glob(f"*/attempt_0/{failure.local_rank}/stderr.log"):
        print(printed.read_text(encoding="utf-8", errors="replace"), file=sys.stderr, end="")
    return RunError(f"{who} was killed ({failure.signal_name()})" if code < 0 else f"{who} failed")
