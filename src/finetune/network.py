"""Connections that wait a few seconds for an answer, or none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

CONNECT_SECONDS = 5.0


@contextmanager
def connect_timeout() -> Iterator[None]:
    """No connection made inside waits longer than 5 seconds for an answer; torch.hub sets no limit itself."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
