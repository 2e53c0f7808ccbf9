"""Commands in processes of their own that begin at once: forked from one that has torch imported already.

Starting Python and importing torch and Lightning takes five seconds. Where a test is not about that, Python's
own fork server spares it: it has imported everything, runs nothing and has no threads, so its forks are safe.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path

from finetune import cli
from support.ended import Ended

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    ["finetune.run", "finetune.sweep.train", "finetune.sweep.resume", "timm", "huggingface_hub.hf_api"]
)


class Started:
    """`finetune ARGUMENTS…`, or other work with these arguments, in the working directory."""

    def __init__(
        self,
        *arguments: str,
        work: Callable[[], object] = cli.console_script,
        environment: dict[str, str] | None = None,
    ) -> None:
        out, told = FORKS.Pipe(duplex=False)
        err, wrong = FORKS.Pipe(duplex=False)
        here = (work, arguments, os.getcwd(), environment or dict(os.environ), told, wrong)
        self.process = FORKS.Process(target=_begin, args=here, daemon=True)
        self.process.start()
        told.close()
        wrong.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(one.fileno()), encoding="utf-8") for one in (out, err))

    def send_signal(self, number: int) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def ended(self, timeout: float = 300) -> Ended:
        """Wait for its end; what it prints after this must fit into a pipe."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it has not ended"
        with self.stdout, self.stderr:
            return Ended(self.process.exitcode, self.stdout.read(), self.stderr.read())


def code(program: str) -> Callable[[], object]:
    """A program to start, given as its text."""
    return partial(exec, program, {})


def _begin(
    work: Callable[[], object],
    arguments: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    out: Connection,
    err: Connection,
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(folder))
    set_start_method(None, force=True)  # the fork server's is no concern of what runs here
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["finetune", *map(str, arguments)]
    try:
        work()
    except KeyboardInterrupt:  # as Python itself ends
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
