"""Weights from torch hub's cache, Hugging Face's, or the network, within seconds or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from finetune.errors import RequestError
from finetune.network import connect_timeout, hub_offline_unless_reached


class Unreachable(Exception):
    """Neither the cache nor the network has the weights; the text says why."""


def download_weights(url: str) -> Path:
    """torchvision's file of that address in torch hub's cache, fetched if it is not there; its hash is right.

    Unreachable: no answer within 5 seconds, or not the file. RequestError: the cached file is damaged.
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
            raise Unreachable(
                f"{name} is not in the cache and could not be fetched ({_reason(error)})"
            ) from None
    with cached.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(hashed[1]):
            raise RequestError(f"weights: {cached} is damaged; delete it, and it is fetched again")
    return cached


def timm_state_dict(name: str) -> dict[str, Tensor]:
    """The state dict of timm's default weights, from the hub's cache or the network, or Unreachable."""
    import timm
    from huggingface_hub.errors import LocalEntryNotFoundError

    with connect_timeout(), hub_offline_unless_reached() as why:
        try:
            return timm.create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError, SafetensorError, http.client.HTTPException) as error:
            told = f"could not be loaded ({_reason(error)})"
            if isinstance(error, LocalEntryNotFoundError):
                told = f"are not in the cache and could not be fetched ({why or _reason(error)})"
            raise Unreachable(f"timm's weights for {name} {told}") from None


def _reason(error: Exception) -> str:
    return (str(getattr(error, "reason", None) or error).splitlines() or [type(error).__name__])[0]
