"""What the batches are made of: features of the frozen prefix where they are kept, else pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune import private
from finetune.data.augment import Prepare
from finetune.data.dataset import Dataset
from finetune.data.digests import known_bad, remember_bad
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.data.sources.found import Progress
from finetune.data.views import Inputs, Rows, Views, views
from finetune.features import store as stored
from finetune.features.extract import Form, choose
from finetune.features.gather import Features, Pictures, gather
from finetune.features.plan import Boundary, Plan, find_boundary, known_by, make_plan
from finetune.machine import ram
from finetune.model.assemble import Model

VIEWS = ("plain", "mirrored")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prospect:
    """What becomes of a data set's pictures, decided before any is decoded.

    contents: how many different pictures there are. views: how many features are kept of each.
    stores: what the features of each view are known by; none where they cannot be stored. held: the bytes
        that the cache has of them already.
    augment: what `auto` means here: fresh pictures in every epoch where the backbone trains on pictures.
    """

    boundary: Boundary
    contents: int
    views: int
    form: Form
    held: int
    plan: Plan
    augment: str
    stores: list[dict[str, Any]]
    cache_dir: Path
    device: str


def foresee(
    model: Model,
    dataset: Dataset,
    *,
    augment: str,
    cache: str,
    cache_dir: Path,
    cache_max_gb: float,
    precision: str,
    compile: str | bool,
    bf16: bool,
    device: str,
) -> Prospect:
    """Find the boundary and decide what is kept, in what form and where.

    bf16: whether the device multiplies bf16 itself.

    Raises:
        RequestError: a cache was asked for that fresh augmentation forbids.
    """
    boundary = find_boundary(model)
    contents, views = len(set(dataset.digests)), 2 if augment == "flip" else 1
    rows = contents * views
    form = choose(precision, compile, device, boundary.prefix_macs * rows, bf16)
    stores: list[dict[str, Any]] = []
    if boundary.split and cache in ("auto", "disk") and augment != "standard":
        found = known_by(model, boundary.split, device)
        stores = [{**found, "view": view} for view in VIEWS[:views]]
    held = sum(stored.held(cache_dir, one | form.describe()) for one in stores)
    plan = make_plan(boundary, augment, cache, rows, form.itemsize, cache_dir, cache_max_gb, held)
    if augment == "auto":
        augment = "standard" if plan.where == "none" and model.backbone_trains() else "none"
    return Prospect(boundary, contents, views, form, held, plan, augment, stores, cache_dir, device)


@dataclass(frozen=True)
class Ready:
    """Everything a training needs of the pictures.

    dataset: without the pictures that are broken (`bad`).
    inputs: by index; `prepare` is applied to a batch of them on the device, then `network`.
    sample: some training pictures as the model sees them, (B, 3, H, W).
    features: what the summary says of them; None where pictures are used.
    """

    dataset: Dataset
    inputs: Views
    prepare: Callable[[Any, bool, int], Inputs]
    network: nn.Module
    sample: Tensor
    augment: str
    bad: list[BadImage]
    boundary: Boundary
    plan: Plan
    features: dict[str, Any] | None


def read(
    model: Model,
    dataset: Dataset,
    prospect: Prospect,
    *,
    workers: int | str,
    seed: int,
    memo: Path,
    progress: Progress,
    say: Say,
) -> Ready:
    """Read every picture once, to keep what is foreseen of it.

    memo: the file that remembers what is known of picture files; broken ones are not tried again.
    progress: a progress bar of a name and a length.
    """
    sizes, augment = model.preprocessing, prospect.augment
    reasons = known_bad(dataset.digests, memo)
    known = {
        index: BadImage(index, str(dataset.images[index]), reasons[digest])
        for index, digest in enumerate(dataset.digests)
        if digest in reasons
    }
    uncropped = frozenset(dataset.split["train"].tolist() if augment == "standard" else [])
    reader = Reader(dataset.images, sizes, known=known, digests=dataset.digests, uncropped=uncropped)
    prepare = Prepare(sizes, augment, seed)
    described = None
    if prospect.plan.where == "none":
        with progress("reading pictures", len(dataset.images)) as advance:
            pixels, broken = reader.all(workers, advance, partial(_room, prospect.cache_dir))
        bad = {one.index: one for one in broken}
        kept = dataset.kept(list(bad))
        places = torch.from_numpy(kept)  # pixels may lie in a file: they stay where they are
        rows: tuple[Rows, Rows] = (
            (lambda chosen: pixels[places[chosen]]),
            (lambda chosen: pixels[places[chosen]].flip(3)),
        )
    else:
        found, bad = _features(dataset, prospect, reader, prepare, progress, say)
        kept = dataset.kept(list(bad))
        found = [one.select(kept) for one in found]
        rows, described = (found[0].inputs, found[-1].inputs), _described(found, prospect.plan)
    remember_bad({dataset.digests[index]: one.reason for index, one in bad.items() if one.lasting}, memo)
    dataset = dataset.without(list(bad)) if bad else dataset
    halves = prospect.boundary.split
    return Ready(
        dataset,
        views(rows[0], rows[1] if augment == "flip" else None, len(kept), seed),
        _as_it_is if described else prepare,
        halves.suffix if described and halves else model.network,
        _sample(dataset, reader, prepare),
        augment,
        [bad[index] for index in sorted(bad)],
        prospect.boundary,
        prospect.plan,
        described,
    )


def _features(
    dataset: Dataset,
    prospect: Prospect,
    reader: Reader,
    prepare: Prepare,
    progress: Progress,
    say: Say,
) -> tuple[list[Features], dict[int, BadImage]]:
    """The features of each view, and the pictures that are broken."""
    halves, device = prospect.boundary.split, prospect.device
    assert halves is not None
    bad: dict[int, BadImage] = {}

    def picture(index: int) -> Tensor | None:
        decoded = reader(index)
        if isinstance(decoded, BadImage):
            # Pictures with the same content are read once: what is wrong with one is wrong with all.
            for same, digest in enumerate(dataset.digests):
                if digest == dataset.digests[index]:
                    bad[same] = replace(decoded, index=same, path=str(dataset.images[same]))
            return None
        return decoded

    found = []
    for number, view in enumerate(VIEWS[: prospect.views]):
        store = (prospect.cache_dir, prospect.stores[number]) if prospect.plan.where == "disk" else None
        pictures = Pictures(picture, dataset.digests, prepare.turned if number else prepare.normalise)
        with progress(f"computing {view} features", prospect.contents) as advance:
            found.append(gather(halves, pictures, prospect.form, device, store, advance, say))
    return found, bad


def _described(found: list[Features], plan: Plan) -> dict[str, Any]:
    return {
        "where": plan.where,
        "form": str(found[0].form),
        "difference": found[0].difference,
        "computed": sum(one.computed for one in found),
        "reused": sum(one.reused for one in found),
        "seconds": sum(one.seconds for one in found),
        "bytes": plan.size,
        "shapes": [list(shape) for shape in found[0].layout.shapes],
    }


def _sample(dataset: Dataset, reader: Reader, prepare: Prepare) -> Tensor:
    """Up to 32 training pictures as the first epoch may show them."""
    order = np.random.default_rng(0).permutation(dataset.split["train"])[:32]
    # Numbered anew, without the bad ones.
    chosen = frozenset(order.tolist()) if reader.uncropped else frozenset()
    reader = replace(reader, pictures=dataset.images, known={}, digests=dataset.digests, uncropped=chosen)
    decoded = [reader(index) for index in order.tolist()]
    return prepare(torch.stack([picture for picture in decoded if isinstance(picture, Tensor)]), True, 1)


def _room(folder: Path, shape: tuple[int, ...]) -> Tensor:
    """Zeroed bytes: in a quarter of the memory at most, else in a file that is gone with the process."""
    if math.prod(shape) <= ram() / 4:
        return torch.zeros(shape, dtype=torch.uint8)
    with TemporaryFile(dir=private.make_folder(folder)) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, shape=shape))


def _as_it_is(features: Inputs, training: bool, number: int) -> Inputs:
    return features
