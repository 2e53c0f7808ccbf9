"""A command that kills itself with SIGKILL, or another signal, at a chosen moment."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from finetune import cli


def in_phase(phase: str, call: int, delay: float, number: int) -> None:
    """Run the command, and send it a signal a while after the `call`-th time that a phase begins.

    delay: in seconds; the signal comes wherever the process then is. The phase that it really was in is the
        last line of the file `phase`.
    """
    from finetune.features import store
    from finetune.training import checkpoint, learner

    seen = 0

    def enter(name: str) -> None:
        nonlocal seen
        with Path("phase").open("a") as file:
            file.write(f"{name}\n")
        if name == phase:
            seen += 1
            if seen == call:
                threading.Timer(delay, os.kill, (os.getpid(), number)).start()

    def watch(owner: Any, method: str, name: str, after: str) -> None:
        original = getattr(owner, method)

        def watched(*arguments: Any, **options: Any) -> Any:
            enter(name)
            result = original(*arguments, **options)
            with Path("phase").open("a") as file:
                file.write(f"{after}\n")
            return result

        setattr(owner, method, watched)

    watch(store.Store, "append", "extraction", "extraction")
    watch(learner.Learner, "training_step", "epoch", "epoch")
    watch(learner.Learner, "validation_step", "validation", "validation")
    watch(checkpoint.AtomicCheckpointIO, "save_checkpoint", "checkpoint", "epoch")
    watch(learner.Learner, "test_step", "test", "test")
    cli.main()


def at_checkpoint(call: int, after: bool = False) -> None:
    """Run the command, its groups writing checkpoints after every epoch, until that of a number is due.

    after: until it has been written.
    """
    from finetune.training import batched_checkpoints

    batched_checkpoints.WRITE_EVERY = 0
    write, seen = batched_checkpoints.sealed.write_checkpoint, 0

    def counted(path: Path, checkpoint: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        if after:
            write(path, checkpoint)
        if seen == call:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after:
            write(path, checkpoint)

    batched_checkpoints.sealed.write_checkpoint = counted
    cli.main()
