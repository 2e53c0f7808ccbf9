"""timm's models and their weights; timm is an extra and imported only where a model is asked of it."""

from __future__ import annotations

import difflib
import http.client
import urllib.error
import urllib.request
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from finetune.errors import RequestError, brief
from finetune.model.download import Unreachable
from finetune.network import CONNECT_SECONDS, connect_timeout


def check(name: str) -> None:
    """Raise RequestError unless timm is installed and has a model of that name."""
    try:
        import timm
    except ImportError:
        raise RequestError(
            f"model=timm/{name}: expected timm to be installed: pip install 'finetune-toolkit[timm]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise RequestError(
            f"model=timm/{name}: timm has no such model; near are {brief(near or timm.list_models())}"
        )


def build(name: str) -> nn.Module:
    """A model of timm's with random weights and 1,000 outputs, where its own weights have other heads too."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=1000)


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """The fields of `Preprocessing` that the model's own weights were trained with."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    size = config["input_size"][-1]
    return {
        "crop_size": size,
        "resize_size": int(size / config["crop_pct"]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config["interpolation"],
    }


def state(name: str) -> dict[str, Tensor]:
    """The state dict of timm's default weights, from the hub's cache or the network.

    Raises:
        Unreachable: neither has it.
    """
    import timm

    config = timm.models.get_pretrained_cfg(name)
    overlay = _cached_or_answered(name, config) if config and config.hf_hub_id else {}
    try:
        with connect_timeout():
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    except (OSError, RuntimeError, SafetensorError, http.client.HTTPException) as error:
        raise Unreachable(f"timm's weights for {name} could not be loaded ({brief_line(error)})") from None


def _cached_or_answered(name: str, config: Any) -> dict[str, Any]:
    """Where the hub's cache holds the weights; else nothing, once the hub has answered.

    Left to itself, huggingface_hub asks five times over for each of two files: 47 seconds without a network.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    names = (
        (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    )
    for filename in names:
        cached = try_to_load_from_cache(repository, filename, revision=revision or None)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    request = urllib.request.Request(hf_hub_url(repository, names[0]), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer: timm tries the other names
    except OSError as error:
        raise Unreachable(
            f"timm's weights for {name} are not in the cache and could not be fetched ({brief_line(error)})"
        ) from None
    return {}


def brief_line(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(getattr(error, "reason", None) or error).splitlines() or [type(error).__name__])[0]
