"""One of the processes that train a run together, started by `finetune.processes`."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path


def work(exchange: Path) -> int:
    """Train as the request in that folder says, or leave word there of why not; returns the exit code."""
    from finetune.atomic import write_json
    from finetune.config.messages import validate
    from finetune.errors import RequestError, RunError
    from finetune.run import run
    from finetune.say import Screen

    rank = os.environ["RANK"]
    request = json.loads((exchange / "request.json").read_text(encoding="utf-8"))
    try:
        run(
            validate(request["settings"]),
            Path(request["folder"]),
            Screen(quiet=request["quiet"]),
        )
    except (RequestError, RunError) as error:
        answer = {"kind": type(error).__name__, "line": str(error), "code": getattr(error, "exit_code", 1)}
        write_json(exchange / f"{rank}.json", answer)
        return 1
    except Exception:  # of torch.distributed, where another process is gone; or a fault of ours
        (exchange / f"{rank}.err").write_text(traceback.format_exc(), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    # Ctrl-C reaches every process of a terminal; what began this one tells of it, and blocked it until here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    code = work(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # an end that waits for no other process
