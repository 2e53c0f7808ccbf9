"""Ctrl-C and SIGTERM as an exception that nothing between them and us may keep to itself."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.errors import Interrupted

NUMBERS = (signal.SIGINT, signal.SIGTERM)
_came = 0  # the first signal within the outermost `signals`, by its number


class Signal(BaseException):
    """A signal came. No KeyboardInterrupt, which Lightning turns into sys.exit(1)."""

    def __init__(self, number: int) -> None:
        self.number = number


def _note(number: int, frame: Any) -> None:
    global _came
    if not _came:  # what follows the first one may tidy up
        _came = number
        raise Signal(number)


@contextmanager
def signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Signal, the first one only; so does whatever that one broke.

    Native code that calls back into Python, as torch.save does, raises an error of its own over it.
    """
    global _came
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread
        yield
        return
    outermost = signal.getsignal(signal.SIGTERM) is not _note
    if outermost:
        before, told = {number: signal.signal(number, _note) for number in NUMBERS}, sys.unraisablehook
        # Raised in a destructor it is lost; `check` will find it, and nobody needs to read of it.
        sys.unraisablehook = lambda lost: None if lost.exc_type is Signal else told(lost)
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        check()
        raise
    finally:
        if outermost:
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook, _came = told, 0


def check() -> None:
    """Raise Signal where one came and was lost on its way; for loops to call, batch by batch."""
    if _came:
        raise Signal(_came) from None


@contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of what must be done whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
