"""torchvision's weights from torch hub's cache or the network, within seconds or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
from pathlib import Path

import torch

from finetune.errors import RequestError
from finetune.network import connect_timeout


class Unreachable(Exception):
    """Neither the cache nor the network has the weights; the text says why."""


def download(url: str) -> Path:
    """The file of that address in torch hub's cache, fetched if it is not there yet; its hash is right.

    Raises:
        Unreachable: no answer within 5 seconds, or an answer that is not the file.
        RequestError: the cached file is damaged.
    """
    name = url.rsplit("/", 1)[-1]
    hashed = re.search(r"-([0-9a-f]{8,})\.", name)
    assert hashed, f"{name} carries no hash"
    cached = Path(torch.hub.get_dir(), "checkpoints", name)
    if not cached.exists():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with connect_timeout():
                torch.hub.download_url_to_file(url, str(cached), hashed[1], progress=sys.stderr.isatty())
        except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: the hash is wrong
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"{name} is not in the cache and could not be fetched ({reason})") from None
    with cached.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(hashed[1]):
            raise RequestError(f"weights: {cached} is damaged; delete it, and it is fetched again")
    return cached
