"""Ctrl-C and SIGTERM: at once or, where a step must be done whole, at the next `check`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_came = 0  # the first signal within the outermost `signals`, by its number
_waits = False  # whether it is for `check` to raise it


class Signal(BaseException):
    """A signal came. No KeyboardInterrupt, which Lightning turns into sys.exit(1)."""

    def __init__(self, number: int) -> None:
        self.number = number


def _note(number: int, frame: Any) -> None:
    global _came
    if not _came:  # what follows the first one may tidy up
        _came = number
        if not _waits:
            raise Signal(number)


@contextmanager
def signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Signal, the first one only."""
    global _came
    outermost = signal.getsignal(signal.SIGTERM) is not _note
    if not outermost or threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread
        return
    before = {number: signal.signal(number, _note) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _came = 0


@contextmanager
def signals_wait() -> Iterator[None]:
    """Within `signals`, those that come take effect at the next `check` only, or in the end.

    An error raised meanwhile gives way: what shares the work may have ended first, by the same signal.
    """
    global _waits
    before, _waits = _waits, True
    try:
        yield
    finally:
        _waits = before
        check()


def check() -> None:
    """Raise Signal where one has come; for loops to call, batch by batch."""
    if _came:
        raise Signal(_came) from None
