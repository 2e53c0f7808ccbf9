"""Permissions that bind, for tests that run as root, too."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522  # of Linux's capability interface, which has two words a set
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


@contextmanager
def without_privilege() -> Iterator[None]:
    """As a user whom permissions bind: root without its right to pass over them, in this thread.

    Another user's identity would not do: that user may not read the interpreter's own files either.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable; then their upper words
    assert libc.capget(header, before) == 0
    reduced = (ctypes.c_uint32 * 6)(*before)
    reduced[0] &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    assert libc.capset(header, reduced) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
