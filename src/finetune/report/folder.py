"""The run's folder: made once, never trained into twice, explaining itself."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.atomic import write_atomically
from finetune.data.images import BadImage
from finetune.errors import Interrupted, RequestError, RunError

LATEST = Path("outputs") / "latest"


def refuse_used(folder: Path) -> None:
    """Raise RequestError where a folder already holds a run."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        raise RequestError(
            f"hydra.run.dir={folder}: expected a new folder; this one holds a run's checkpoints"
        )


def start(folder: Path, settings: dict[str, Any], skipped: Sequence[BadImage]) -> None:
    """Write what is known when settings and data are found valid, and make this run the latest."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        LATEST.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be made: {error.strerror}") from None
    write_json(folder / "settings.json", settings)
    if skipped:
        list_bad(folder, skipped)
    write_atomically(LATEST, lambda file: file.write(f"{folder}\n".encode()))


def list_bad(folder: Path, pictures: Sequence[BadImage]) -> None:
    """Write skipped.csv: the path of each picture that cannot be used, and why."""
    text = io.StringIO()
    csv.writer(text).writerows([("path", "reason"), *((bad.path, bad.reason) for bad in pictures)])
    content = text.getvalue().encode("utf-8", "surrogateescape")  # a file's name may be no text
    write_atomically(folder / "skipped.csv", lambda file: file.write(content))


def give_reason(folder: Path, error: BaseException) -> None:
    """Say in summary.json why a run that had started did not finish."""
    interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
    if (folder / "settings.json").exists() and not isinstance(error, RequestError):
        reason = str(error) or type(error).__name__
        status = "interrupted" if interrupted else "failed"
        with suppress(RunError):  # the disk may be what failed
            write_json(folder / "summary.json", {"status": status, "reason": reason})


def write_json(path: Path, value: Any) -> None:
    """Write a file of indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))
