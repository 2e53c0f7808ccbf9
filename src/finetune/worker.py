"""One of the processes that train a run together: `python -P -m finetune.worker FOLDER`, from `workers`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

GRACE = 10.0  # seconds that this process has to end once the one that started it has gone


def work(exchange: Path) -> int:
    """Train as the request in that folder says, or leave word of why not; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from finetune.config.messages import validate
    from finetune.run import run
    from finetune.say import Screen

    request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
    try:
        run(validate(request["settings"]), Path(request["folder"]), Screen(quiet=request["quiet"]))
    except Exception as error:  # of torch.distributed where another process has gone, or a fault of ours, too
        get_error_handler().record_exception(error)
        return getattr(error, "exit_code", 1)
    return 0


def _end_with_parent(exchange: Path) -> None:
    """Wait until the process that started this one has closed its end of the pipe, then end."""
    with suppress(FileNotFoundError):  # it was quicker
        pipe = os.open(exchange / "alive", os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)  # what has been written stays whole
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    code = work(folder)
    sys.stdout.flush()
    os._exit(code)  # an end that waits for no other process
