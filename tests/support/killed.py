"""`finetune ARGUMENTS…` that kills itself with SIGKILL, or another signal, at a random moment of a phase.

python killed.py PHASE CALL DELAY SIGNAL ARGUMENTS…: DELAY seconds after the CALL-th time that PHASE begins,
wherever the process then is. The phase that it really was in is the last line of the file `phase`.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any


def main(phase: str, call: int, delay: float, number: int) -> None:
    from finetune import cli
    from finetune.features import store
    from finetune.training import checkpoint, module

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
    watch(module.Classifier, "training_step", "epoch", "epoch")
    watch(module.Classifier, "validation_step", "validation", "validation")
    watch(checkpoint.AtomicCheckpointIO, "save_checkpoint", "checkpoint", "epoch")
    watch(module.Classifier, "test_step", "test", "test")
    cli.main()


if __name__ == "__main__":
    wanted, times, seconds, signal_number, *rest = sys.argv[1:]
    sys.argv = ["finetune", *rest]
    main(wanted, int(times), float(seconds), int(signal_number))
