"""What of a model is computed once for each image, and where that is cached: decided from bytes and work."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune import private
from finetune.choices.augmentations import AUGMENTATIONS, Augmentation, automatic
from finetune.data.dataset import Dataset
from finetune.data.digests import decoders
from finetune.errors import RequestError
from finetune.features.extract import DTYPES, Form, choose_form
from finetune.features.inventory import count_stored, size_of_all
from finetune.features.store import WAYS
from finetune.machine import ram
from finetune.model.assemble import Model
from finetune.model.boundary import NotTraceable, Split, split
from finetune.model.hashing import digest, fingerprint, own_code
from finetune.model.tracing import keep_modes

Where = Literal["disk", "memory", "none"]
VIEWS = ("plain", "mirrored")

# A byte read back costs about a nanosecond, a multiply-add a hundredth of one: below this, computing is as
# fast as reading. resnet18 at 224 px: 74 for conv1, 1,450 for layer1, 1.8 million for the pooled features.
WORTH_MACS_PER_BYTE = 300


@dataclass(frozen=True)
class FeatureSettings:
    """The settings that decide what is cached, and the device.

    fresh: the setting on account of which every epoch shows other images; None where all show the same.
    """

    cache: str
    cache_dir: Path
    cache_max_gb: float
    augment: str
    precision: str
    compile: str | bool
    device: str
    multiplies_bf16: bool
    fresh: str | None = None


@dataclass(frozen=True)
class FeaturePlan:
    """What of a model runs once for each image, in what form, and where its output is cached.

    split: the two halves of the model; None where nothing can be cached, and `why` then says why.
    prefix_macs, suffix_macs: multiply-adds of the halves for one image. images: how many different ones.
    views: which of each are cached. keys: what those are known by, beside the form, where they are stored.
    size: in bytes. augment: what `auto` means here.
    """

    split: Split | None
    prefix_macs: float
    suffix_macs: float
    images: int
    views: tuple[str, ...]
    form: Form
    keys: tuple[dict[str, Any], ...]
    where: Where
    size: int
    why: str
    augment: str
    cache_dir: Path
    device: str

    def parts(self, row_bytes: int) -> int:
        """In how many parts the features are read, so that a quarter of the memory holds each."""
        return max(1, math.ceil(row_bytes * self.images * len(self.views) / (ram() / 4)))

    @property
    def share(self) -> float:
        """The prefix's part of the forward pass."""
        return self.prefix_macs / (self.prefix_macs + self.suffix_macs)


def plan_features(model: Model, dataset: Dataset, wanted: FeatureSettings) -> FeaturePlan:
    """Split the model where gradients begin, and decide what is cached; no image is decoded."""
    cache, augment = wanted.cache, wanted.augment
    shown = Augmentation() if augment == "auto" else AUGMENTATIONS[augment]
    halves, why = halve(model)
    total = macs(model.network, model.example)
    prefix_macs = macs(halves.prefix, model.example) if halves and halves.prefix else 0.0
    images = len(set(dataset.digests))
    views = VIEWS if shown.mirrored else VIEWS[:1]
    rows = images * len(views)
    precision, device, bf16 = wanted.precision, wanted.device, wanted.multiplies_bf16
    form = choose_form(precision, wanted.compile, device, macs=prefix_macs * rows, bf16=bf16)
    keys: tuple[dict[str, Any], ...] = ()
    where: Where = "none"
    size = 0
    if halves and wanted.fresh:
        why = f"{wanted.fresh} shows other images in every epoch"
    elif halves:
        own = own_code(halves.prefix) if halves.prefix else ""
        if cache in ("auto", "disk") and not own:
            about = _about(model, halves, device)
            keys = tuple({**about, "view": view} for view in views)
        row_bytes = sum(crossing.size for crossing in halves.crossings) // 4 * DTYPES[form.dtype].itemsize
        size = row_bytes * rows
        stores = [{**key, **asdict(form)} for key in keys]
        room = _room(wanted, stores, {*dataset.digests}, row_bytes)
        if own:
            room = -1, f"{own} is code whose version is not known"
        where, why = decide(cache, row_bytes, rows, prefix_macs, room=room)
    if augment == "auto":
        augment = automatic(where == "none" and model.backbone_trains())
    return FeaturePlan(
        split=halves,
        prefix_macs=prefix_macs,
        suffix_macs=total - prefix_macs,
        images=images,
        views=views,
        form=form,
        keys=keys,
        where=where,
        size=size,
        why=why,
        augment=augment,
        cache_dir=wanted.cache_dir,
        device=device,
    )


def halve(model: Model) -> tuple[Split | None, str]:
    """The model's halves; None where nothing can be cached, and why."""
    try:
        halves = split(model.network, model.example)
    except NotTraceable as error:
        return None, f"the model cannot be split: {error}"
    return (halves, "") if halves.prefix else (None, "nothing frozen comes before what trains")


def macs(network: nn.Module, example: Tensor) -> float:
    with keep_modes(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval().requires_grad_(False)(example)  # or the counter asks what made a parameter
    return counter.get_total_flops() / 2


def _about(model: Model, halves: Split, device: str) -> dict[str, Any]:
    """All that decides features, beside their view and the form they are computed in."""
    assert halves.prefix is not None
    return {
        **known_by(model, device),
        "boundary": [crossing.name for crossing in halves.crossings],
        "weights": digest({**halves.prefix.state_dict(), **dict(halves.prefix.named_buffers())}),
        "graph": fingerprint(halves.prefix),
    }


def known_by(model: Model, device: str) -> dict[str, Any]:
    """What decides all that is computed with a model, beside its weights."""
    processor = torch.backends.cpu.get_cpu_capability()
    by_timm = any(type(part).__module__.startswith("timm.") for part in model.network.modules())
    timm = [version("timm")] if by_timm else []
    return {
        "model": model.name,
        "preprocessing": model.preprocessing.metadata(),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "versions": [torch.__version__, torchvision.__version__, decoders(), *timm],
    }


def _room(wanted: FeatureSettings, stores: list[Any], digests: set[str], row_bytes: int) -> tuple[float, str]:
    """How many bytes of these features may lie in the cache, those there included, and why no more."""
    folder = wanted.cache_dir
    try:
        private.make_folder(folder)
        free = 0.9 * shutil.disk_usage(folder).free
    except OSError as error:
        if wanted.cache == "disk":
            raise RequestError(f"cache_dir={folder}: expected a folder ({error.strerror}); {WAYS}") from None
        return -1, f"cache_dir={folder} cannot be made ({error.strerror})"
    reused = row_bytes * sum(count_stored(folder, about, digests) for about in stores)
    left = wanted.cache_max_gb * 1e9 - size_of_all(folder)
    return reused + max(0, min(left, free)), "over cache_max_gb or the free disk"


def decide(
    cache: str, row_bytes: int, rows: int, row_macs: float, room: tuple[float, str]
) -> tuple[Where, str]:
    """Where `cache=auto|memory|disk|none` puts so many rows of features, and why.

    room: how many bytes may lie on disk, and why no more.
    """
    size = row_bytes * rows
    if cache == "none":
        return "none", "cache=none"
    if cache == "auto" and row_macs < WORTH_MACS_PER_BYTE * row_bytes:
        return "none", "computing them again costs no more than reading them"
    most, full = room
    if cache in ("auto", "disk") and size <= most:
        return "disk", "on disk for the next run"
    over = "" if cache == "memory" else f"{full}, so not stored; "
    if size <= ram() / 4:
        return "memory", f"{over}in memory for this run"
    return "none", f"{over}too large for memory"
