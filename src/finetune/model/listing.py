"""`finetune models`: what there is, how large it is, and whose weights are at hand without a network."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console

from finetune.errors import RequestError
from finetune.model.build import LITE0, model_names, timm_name
from finetune.model.weights import BUNDLED, PACKAGE, enum_of

ROW = "{:<36} {:>4} {:>11} {:>7}  {}"


def list_models(pattern: str, console: Console) -> None:
    """A line for each model with that in its name, or of such a name as *_b0; timm's only if one is given."""
    wanted = pattern if {*pattern} & {*"*?["} else f"*{pattern}*"
    names = sorted([*model_names(), LITE0])
    if pattern and find_spec("timm"):
        import timm

        names += [f"timm/{name}" for name in timm.list_models()]
    found = [one for one in names if fnmatch(one, wanted) or fnmatch(one, f"timm/{wanted}")]
    rows = [ROW.format(name, *_about(name)).rstrip() for name in found]
    if not rows:
        raise RequestError(f"{pattern}: expected a part of a model's name, as resnet, or a pattern as *_b0")
    rows += [] if pattern else ["Of timm, where it is installed: finetune models timm/"]
    console.print("\n".join([ROW.format("model", "size", "parameters", "GMACs", "weights at hand"), *rows]))


def _about(name: str) -> tuple[object, ...]:
    """Input size in pixels, parameters, billions of multiplications an image, where weights are."""
    if name == LITE0:
        return 224, "4,652,008", "0.40", "package" if find_spec(PACKAGE) else "pip: lite0"
    if theirs := timm_name(name):  # its registry knows no more
        import timm
        from huggingface_hub import try_to_load_from_cache

        known = timm.get_pretrained_cfg(theirs, allow_unregistered=True)
        hub, size = (known.hf_hub_id, known.input_size[-1]) if known else (None, "")
        cached = hub and isinstance(try_to_load_from_cache(hub, "model.safetensors"), str)
        return size, "", "", "cache" if cached else ""
    enum = enum_of(name, "imagenet")
    assert enum is not None
    cached, meta = Path(torch.hub.get_dir(), "checkpoints", Path(enum.url).name).exists(), enum.meta
    at_hand = ", ".join(["cache"] * cached + ["bundled"] * (name in BUNDLED))
    return enum.transforms().crop_size[0], f"{meta['num_params']:,}", f"{meta['_ops']:.2f}", at_hand
