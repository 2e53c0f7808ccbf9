"""Where the model splits, and where its features are kept: decided from bytes and work, never by a timing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.errors import RequestError
from finetune.features.store import size as stored_size
from finetune.machine import ram
from finetune.model import modes
from finetune.model.assemble import Model
from finetune.model.boundary import NotTraceable, Split, fingerprint, split
from finetune.model.freeze import digest

Where = Literal["disk", "memory", "none"]

# A byte read back costs about a nanosecond, a multiply-add a hundredth of one: below this, computing is as
# fast as reading. resnet18 at 224 px: 74 for conv1, 1,450 for layer1, 1.8 million for the pooled features.
WORTH_MACS_PER_BYTE = 300


@dataclass(frozen=True)
class Boundary:
    """Where the model splits, and the multiply-adds of prefix and suffix for one picture.

    split: None where nothing can be kept; `why` then says why.
    """

    split: Split | None
    prefix_macs: float
    suffix_macs: float
    why: str = ""

    @property
    def share(self) -> float:
        """The prefix's part of the forward pass."""
        return self.prefix_macs / (self.prefix_macs + self.suffix_macs)


def find_boundary(model: Model) -> Boundary:
    """Split the model where gradients begin and measure both sides."""
    whole = macs(model.network, model.example)
    try:
        halves = split(model.network, model.example)
    except NotTraceable as error:
        return Boundary(None, 0.0, whole, f"the model cannot be split: {error}")
    if halves.prefix is None:
        return Boundary(None, 0.0, whole, "nothing frozen comes before what trains")
    before = macs(halves.prefix, model.example)
    return Boundary(halves, before, whole - before)


def macs(network: nn.Module, example: Tensor) -> float:
    """Multiply-adds of a forward pass in eval mode."""
    with modes.kept(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(example)
    return counter.get_total_flops() / 2


@dataclass(frozen=True)
class Plan:
    """Where the features go, how many bytes they take, and why."""

    where: Where
    size: int
    why: str


def make_plan(
    boundary: Boundary,
    augment: str,
    cache: str,
    rows: int,
    element_bytes: int,
    cache_dir: Path,
    cache_max_gb: float,
    held: int,
) -> Plan:
    """Where the features of so many pictures go, each number of them taking `element_bytes`.

    held: bytes that the cache has of just these features already.

    Raises:
        RequestError: a cache was asked for that fresh augmentation forbids.
    """
    if augment == "standard" and cache in ("memory", "disk"):
        raise RequestError(
            f"cache={cache}: expected data.augment=none or flip with it; standard shows"
            " other pictures in every epoch, which cannot be kept"
        )
    if boundary.split is None:
        return Plan("none", 0, boundary.why)
    if augment == "standard":
        return Plan("none", 0, "augmentation shows other pictures in every epoch")
    elements = sum(crossing.size for crossing in boundary.split.crossings) // 4
    existing = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
    return decide(
        cache,
        elements * element_bytes,
        rows,
        boundary.prefix_macs,
        stored=stored_size(cache_dir),
        held=held,
        cap=int(cache_max_gb * 1e9),
        free=shutil.disk_usage(existing).free,
        memory=ram(),
    )


def known_by(model: Model, halves: Split, device: str) -> dict[str, Any]:
    """All that decides features, beside the form they are computed in."""
    assert halves.prefix is not None
    timm = [version("timm")] if model.name.startswith("timm/") else []
    return {
        "model": model.name,
        "boundary": [crossing.name for crossing in halves.crossings],
        "weights": digest(halves.prefix.state_dict()),
        "graph": fingerprint(halves.prefix),
        "preprocessing": model.preprocessing.metadata(),
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "versions": [torch.__version__, torchvision.__version__, PIL.__version__, *timm],
    }


def decide(
    requested: str,
    row_bytes: int,
    rows: int,
    row_macs: float,
    *,
    stored: int,
    held: int,
    cap: int,
    free: int,
    memory: int,
) -> Plan:
    """Decide `cache=auto|memory|disk|none`.

    stored: bytes in the cache already, of which `held` are of these features. cap: `cache_max_gb` in bytes.
    free: bytes free on the disk. memory: bytes of RAM, of which a quarter may be taken.
    """
    size = row_bytes * rows
    if requested == "none":
        return Plan("none", size, "cache=none")
    if requested == "auto" and row_macs < WORTH_MACS_PER_BYTE * row_bytes:
        return Plan("none", size, "computing them again costs no more than reading them")
    new = max(size - held, 0)
    fits_disk = stored + new <= cap and new <= 0.9 * free
    if requested in ("auto", "disk") and fits_disk:
        return Plan("disk", size, "on disk for the next run")
    over = "" if requested == "memory" else "over cache_max_gb or the free disk, so not stored; "
    if size <= memory / 4:
        return Plan("memory", size, f"{over}in memory for this run")
    return Plan("none", size, f"{over}too large for memory")


def readable(size: float) -> str:
    """Bytes as people read them: 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
