"""A run that several processes of this machine train: started here, and what ends one of them ends all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune.config.schema import Settings
from finetune.errors import Interrupted, RequestError, RunError
from finetune.runs.summary import read_summary
from finetune.signals import Signal, signals, signals_wait
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.distributed import Rank

GRACE = 10.0  # seconds that the others have to end once one has failed
KINDS = {kind.__name__: kind for kind in (RequestError, RunError)}


def find_rank(settings: Settings) -> Rank | None:
    """This process's rank among those that train a run; None where they are still to be started.

    Raises:
        RequestError: the devices asked for are not there, or as many processes were not started.
    """
    trainer = settings.trainer
    here = devices.count(trainer.devices, devices.accelerator(trainer.accelerator))
    return distributed.find_rank(here, trainer.nodes)


def launch(settings: Settings, folder: Path, quiet: bool) -> dict[str, Any]:
    """Train in processes of their own, as many as `trainer.devices` says, and return the summary.

    Each begins with the settings alone, not with the command line: what began this process is not run again.

    Raises:
        RequestError, RunError, Interrupted: as the first process that failed has told it.
    """
    trainer = settings.trainer
    size = devices.count(trainer.devices, devices.accelerator(trainer.accelerator))
    with TemporaryDirectory() as name:
        exchange = Path(name)
        request = {"settings": settings.model_dump(), "folder": str(folder), "quiet": quiet}
        (exchange / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        here |= {"LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0"}
        started: list[subprocess.Popen[bytes]] = []
        came = 0
        try:
            with signals():
                with signals_wait():  # none is left behind that is not on the list
                    for rank in range(size):
                        own = {**os.environ, **here, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                        started.append(_started(exchange, rank, own))
                _wait(started)
        except Signal as received:
            came = received.number
            _end(started, came)
        _judge(started, exchange, came)
    summary = read_summary(folder)
    assert summary is not None
    return summary


def _started(exchange: Path, rank: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # -P: else a file random.py in the working folder would be run in the place of Python's own.
    command = [sys.executable, "-P", "-m", "finetune.rank", str(exchange)]
    with (exchange / f"{rank}.err").open("wb") as words:
        # Ctrl-C waits until it has begun: Python would tell of it with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # The first one speaks; what the others print is shown where they are at fault.
            return subprocess.Popen(command, env=environment, stderr=words if rank else None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(started: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; once one has failed, the others have a few seconds."""
    while any(process.poll() is None for process in started):
        if any(process.returncode for process in started):
            return _end(started, signal.SIGTERM)
        time.sleep(0.05)


def _end(started: list[subprocess.Popen[bytes]], number: int) -> None:
    for step in (number, signal.SIGKILL):
        for process in started:
            if process.poll() is None:
                process.send_signal(step)
        until = time.monotonic() + GRACE
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))


def _judge(started: list[subprocess.Popen[bytes]], exchange: Path, came: int) -> None:
    """Raise what ended the run, if anything did: what a process told, or what became of it.

    came: the signal that this process got, or 0.
    """
    if not any(process.returncode for process in started):
        return
    told = [_answer(exchange, rank) for rank in range(len(started))]
    interrupted = [answer for answer in told if answer and answer["kind"] == Interrupted.__name__]
    if came:  # what a process meets whose fellows have gone is no reason of its own
        line = interrupted[0]["line"] if interrupted else f"interrupted by {signal.Signals(came).name}"
        raise Interrupted(line, 128 + came)
    for answer in told:
        if answer and answer["kind"] in KINDS:
            raise KINDS[answer["kind"]](answer["line"])
    killed = [rank for rank, process in enumerate(started) if process.returncode < 0 and not told[rank]]
    failed = [rank for rank, process in enumerate(started) if process.returncode > 0 and not told[rank]]
    lost = [rank for rank in killed if -started[rank].returncode != signal.SIGTERM] or failed
    if lost:
        rank = lost[-1]
        print((exchange / f"{rank}.err").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
        how = f"was killed ({signal.Signals(-started[rank].returncode).name})" if rank in killed else "failed"
        raise RunError(f"process {rank} of {len(started)} {how}")
    if interrupted:
        raise Interrupted(interrupted[0]["line"], interrupted[0]["code"])
    raise Interrupted("interrupted by SIGTERM", 128 + signal.SIGTERM)


def _answer(exchange: Path, rank: int) -> dict[str, Any] | None:
    file = exchange / f"{rank}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
