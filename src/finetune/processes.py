"""A run that several processes of this machine train: started here, and what ends one of them ends all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from finetune.errors import Interrupted, RequestError, RunError
from finetune.saved import summary_of
from finetune.settings import Settings
from finetune.training import device as devices
from finetune.training import distributed
from finetune.training.distributed import Place
from finetune.training.fit import Signal, signals
from finetune.validation import validate

GRACE = 10.0  # seconds that the others have to end once one has failed
KINDS = {kind.__name__: kind for kind in (RequestError, RunError)}


def place(settings: Settings) -> Place | None:
    """This process's place among those that train a run; None where they are still to be started.

    Raises:
        RequestError: the devices asked for are not there, or as many processes were not started.
    """
    trainer = settings.trainer
    here = devices.count(trainer.devices, devices.accelerator(trainer.accelerator))
    return distributed.place(here, trainer.nodes)


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
        started = []
        for rank in range(size):
            own = {**os.environ, **here, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "finetune.processes", name]
            with (exchange / f"{rank}.err").open("wb") as words:
                # The first one speaks; what the others print is shown where they are at fault.
                started.append(subprocess.Popen(command, env=own, stderr=words if rank else None))
        came = 0
        try:
            with signals():
                _wait(started)
        except Signal as received:
            came = received.number
            _end(started, came)
        _judge(started, exchange, came)
    summary = summary_of(folder)
    assert summary is not None
    return summary


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


def _work(exchange: Path) -> int:
    """One of the processes: train, or leave word of why not."""
    from finetune.run import run  # which begins such processes

    request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
    console = Console(soft_wrap=True, quiet=request["quiet"])
    try:
        run(validate(request["settings"]), Path(request["folder"]), console)
    except (RequestError, RunError) as error:
        answer = {"kind": type(error).__name__, "line": str(error), "code": getattr(error, "exit_code", 1)}
        part = exchange / f".{os.environ['RANK']}.json"
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(exchange / f"{os.environ['RANK']}.json")
        return 1
    except Exception:  # of torch.distributed, where another process is gone; or a fault of ours
        (exchange / f"{os.environ['RANK']}.err").write_text(traceback.format_exc(), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    code = _work(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # an end that waits for no other process
