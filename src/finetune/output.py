"""Stdout and stderr of a command: whoever reads them may go, and no letter is one too many."""

from __future__ import annotations

import errno
import io
import locale
import os
import sys
from typing import Any


class Output(io.FileIO):
    """What cannot be written is dropped, so that the work goes on; `failed` says why, once it is so."""

    failed: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write, or drop where writing has failed."""
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
        return len(data)


def in_utf8() -> None:
    """Begin again in Python's UTF-8 mode where names of files would not be read as UTF-8.

    What is printed stays in the terminal's letters.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", locale.getencoding())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_over() -> None:
    """Give this process streams of that kind; what was closed when it began becomes the null device.

    Of a closed stream the number would else become that of the next file opened, a checkpoint perhaps.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "r+", errors="replace")  # noqa: SIM115
        elif number:
            raw = io.BufferedWriter(Output(number, "w", closefd=False))
            errors = "replace" if name == "stdout" else stream.errors
            stream = io.TextIOWrapper(raw, stream.encoding, errors, line_buffering=stream.line_buffering)
        setattr(sys, name, stream)


def failure(stream: Any) -> OSError | None:
    """Why nothing more reaches a stream; None where all is well."""
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failed", None)


def end(code: int) -> int:
    """Write what is left; returns the exit code, 1 where stdout failed and not for want of a reader."""
    sys.stdout.flush()
    error = failure(sys.stdout)
    if error and error.errno != errno.EPIPE:
        print(f"error: stdout: cannot be written: {error.strerror}", file=sys.stderr)
        code = code or 1
    sys.stderr.flush()
    return code
