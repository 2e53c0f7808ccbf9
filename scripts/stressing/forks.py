"""Commands in forked processes: torch is imported once, and each process can be disturbed."""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

LONGEST = 300.0  # seconds, after which a command hangs
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "sqlite3.connect"}


@dataclass(frozen=True)
class Ended:
    """How a command ended; a process that a signal ended has its negative number as code."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def broken(self) -> bool:
        """Whether it ended in what no user should see."""
        return "Traceback" in self.err or self.seconds > LONGEST


class Writes:
    """Counts what a process is about to change below its working folder, in memory that its parent shares.

    act: called with the number of each change before it is made. first: the count at the first change in a
    folder `checkpoints`, with which training begins. storing: at the first one in a feature store.
    """

    def __init__(self, act: Callable[[int], object] = lambda number: None) -> None:
        self.act, self.shared = act, mmap.mmap(-1, 12)

    @property
    def count(self) -> int:
        return struct.unpack("iii", self.shared[:])[0]

    @property
    def first(self) -> int:
        return struct.unpack("iii", self.shared[:])[1]

    @property
    def storing(self) -> int:
        return struct.unpack("iii", self.shared[:])[2]

    def watch(self) -> None:
        """From now on, in this process."""
        self.folder, sync, write = f"{os.getcwd()}/", os.fsync, os.pwrite

        def fsync(file: Any) -> None:
            self._note("")
            sync(file)

        def pwrite(*arguments: Any) -> int:  # into the files of a feature store, which stay open
            self._note("")
            return write(*arguments)

        os.fsync, os.pwrite = fsync, pwrite
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            heard = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            heard = event in CHANGES
        if heard and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(self.folder):
                self._note(path)

    def _note(self, path: str) -> None:
        count = self.count + 1
        first = self.first or ("/checkpoints/" in path and count)
        storing = self.storing or ("/features/" in path and count)
        self.shared[:] = struct.pack("iii", count, first, storing)
        self.act(count)


class Process:
    """`finetune ARGUMENTS…` at work in a folder.

    before: called in the new process; writes: what watches its changes.
    """

    def __init__(
        self, folder: Path, *arguments: str, writes: Writes | None = None, before: Callable[[], Any] = int
    ) -> None:
        # Beside the folder, which may be a disk that is full.
        self.words = [folder.with_name(f".{time.monotonic_ns()}.{end}") for end in ("out", "err")]
        self.began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._work(folder, arguments, writes, before)

    def _work(
        self, folder: Path, arguments: tuple[str, ...], writes: Writes | None, before: Callable[[], Any]
    ) -> NoReturn:
        try:
            for number, path in enumerate(self.words, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            os.environ["HOME"] = str(folder.parent)
            sys.argv = ["finetune", *arguments]
            from finetune import cli

            before()
            if writes:
                writes.watch()
            cli.console_script()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def send(self, number: int) -> None:
        """A signal; nothing where the process has ended."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(self.pid, number)

    def until(self, moment: float) -> None:
        """Wait until so many seconds after its beginning, or until it has ended."""
        while time.monotonic() - self.began < moment:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.002)

    def until_stopped(self, longest: float = LONGEST) -> bool:
        """Wait until it stands still, or has ended; False where neither came about in time."""
        state = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        until = time.monotonic() + longest
        while not os.waitid(os.P_PID, self.pid, state):
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True

    def wait(self) -> Ended:
        """Wait for its end; what hangs is killed."""
        self.until(LONGEST)
        self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self.words)
        for path in self.words:
            path.unlink()
        return Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self.began)


def command(folder: Path, *arguments: str, **options: Any) -> Ended:
    """`finetune ARGUMENTS…` in a folder, to its end."""
    return Process(folder, *arguments, **options).wait()


def disturbed(
    folder: Path, *arguments: str, moment: float | None = None, write: int | None = None, number: int
) -> Ended:
    """The same, sent a signal after so many seconds, or by itself before its so many-th change."""
    if write is None:
        process = Process(folder, *arguments)
        process.until(moment or 0.0)
        process.send(number)
        return process.wait()

    def act(count: int) -> None:
        if count == write:
            os.kill(os.getpid(), number)

    return command(folder, *arguments, writes=Writes(act))


def preload() -> None:
    """Import what commands import, and leave one thread: processes are forked from here."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR") or os.path.expanduser("~/.cache/matplotlib")
    import torch
    from hydra.core.plugins import Plugins

    for name in (
        "api",
        "cli",
        "evaluation.command",
        "evaluation.predict",
        "evaluation.overlay",
        "sweep.resume",
    ):
        importlib.import_module(f"finetune.{name}")
    torch.set_num_threads(1)
    gc.freeze()  # what is there already need not be looked through in each process
    Plugins.instance()
