"""Weights from torch hub's cache, Hugging Face's, or the network, within seconds or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from finetune.errors import RequestError
from finetune.network import CONNECT_SECONDS, connect_timeout


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

    known = timm.models.get_pretrained_cfg(name)
    overlay = _cached_or_answered(name, known) if known and known.hf_hub_id else {}
    try:
        with connect_timeout():
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except (OSError, RuntimeError, SafetensorError, http.client.HTTPException) as error:
        raise Unreachable(f"timm's weights for {name} could not be loaded ({_reason(error)})") from None


def _cached_or_answered(name: str, known: Any) -> dict[str, Any]:
    """Where the hub's cache holds the weights; else nothing, once the hub has answered.

    Its own client retries each of two files five times, and waits a minute for each: 47 seconds without a
    network, minutes where the hub is silent. No setting of the client's shortens that.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository, _, revision = known.hf_hub_id.partition("@")
    files = [known.hf_hub_filename] if known.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    request = urllib.request.Request(hf_hub_url(repository, files[0]), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer: timm tries the other names
    except OSError as error:
        raise Unreachable(
            f"timm's weights for {name} are not in the cache and could not be fetched ({_reason(error)})"
        ) from None
    return {}


def _reason(error: Exception) -> str:
    return (str(getattr(error, "reason", None) or error).splitlines() or [type(error).__name__])[0]
