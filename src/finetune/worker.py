"""One of the processes that train a run together: `python -P -m finetune.worker FOLDER`, from `workers`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

GRACE = 5.0  # seconds that this process has to end once the one that started it has gone


def work(exchange: Path) -> int:
    """Train as the request in that folder says, or leave word of why not; returns the exit code."""
    from finetune.config.messages import validate
    from finetune.errors import RequestError, RunError
    from finetune.run import run
    from finetune.say import Screen

    request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
    try:
        run(validate(request["settings"]), Path(request["folder"]), Screen(quiet=request["quiet"]))
    except (RequestError, RunError) as error:
        _leave_word(line=str(error))
        return error.exit_code
    except Exception:  # a fault of ours, or of torch.distributed as another worker has gone
        time.sleep(1)  # that one is noticed first then, and this one is ended meanwhile
        _leave_word(traceback=traceback.format_exc())
        return 1
    return 0


def _leave_word(**told: str) -> None:
    """Write the file that torch's agent looks for; whole, as the agent may end this process meanwhile."""
    from finetune.atomic import write_json

    file = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    write_json(file, {"message": "told", "timestamp": int(time.time()), **told})


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
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while it imports, a traceback would say nothing
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    # Workers meet on this machine alone.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    code = work(folder)
    sys.stdout.flush()
    os._exit(code)  # an end that waits for no other process
