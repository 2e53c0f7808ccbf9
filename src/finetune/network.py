"""Connections that wait a few seconds for an answer, or none."""

from __future__ import annotations

import http.client
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def hub_offline_unless_reached() -> Iterator[str | None]:
    """Hugging Face's own offline mode where its hub does not answer: what is in its cache is loaded.

    Its client tries five times for each file and waits a minute for each, and no setting shortens that.
    Yields why the hub is not reached; None where it is.
    """
    from huggingface_hub import constants

    places: list[Any] = [constants, sys.modules.get("datasets.config", constants)]
    why = None
    before = [one.HF_HUB_OFFLINE for one in places]
    try:
        if not constants.HF_HUB_OFFLINE:
            urllib.request.urlopen(constants.ENDPOINT, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except (OSError, ValueError, http.client.HTTPException) as error:  # HF_ENDPOINT may be anything
        why = str(getattr(error, "reason", None) or error)
    try:
        for one in places:
            one.HF_HUB_OFFLINE |= why is not None
        yield why
    finally:
        for one, was in zip(places, before, strict=True):
            one.HF_HUB_OFFLINE = was
