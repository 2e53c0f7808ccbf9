"""`finetune ARGUMENTS…` whose groups write checkpoints after every epoch, until SIGKILL at a chosen write.

python killed_group.py CALL ARGUMENTS…: the process kills itself where it would write its CALL-th checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(call: int) -> None:
    from finetune import cli
    from finetune.sweep import record, together

    together.WRITE_EVERY = 0
    write, seen = record.Record._save, 0

    def counted(self: record.Record, path: Path, *arguments: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, path, *arguments)

    record.Record._save = counted  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    times, *rest = sys.argv[1:]
    sys.argv = ["finetune", *rest]
    main(int(times))
