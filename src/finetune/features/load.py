"""What the batches are made of: features of the frozen prefix where they are cached, else images."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.choices.augmentations import AUGMENTATIONS
from finetune.data.augment import Prepare
from finetune.data.dataset import Dataset
from finetune.data.digests import known_bad, remember_bad, were_decoded
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.data.sources.labeled import Progress
from finetune.data.streaming import Stream
from finetune.data.views import Blocks, Inputs, Views, views
from finetune.features.compute import FeatureComputer, Features, fits_on_gpu
from finetune.features.plan import FeaturePlan
from finetune.features.rows import BLOCK
from finetune.machine import ram
from finetune.model.assemble import Model

STREAMED = "the decoded images would take more than a quarter of the memory"
LARGE = "the features would take more than a quarter of the memory; they are read in shuffled blocks"
SAMPLE = 32  # training images that TensorBoard shows


@dataclass(frozen=True)
class LoadSettings:
    """How images are read; progress: a bar of a name and a length.

    memo: the file that remembers what is known of image files, as that they are broken.
    on_wait: called where another run computes the same features and is waited for.
    """

    workers: int | str
    seed: int
    memo: Path
    progress: Progress
    on_wait: Callable[[], None]


@dataclass(frozen=True)
class ModelInputs:
    """Everything a training needs of the images.

    dataset: without the images that are broken (`bad`).
    inputs: by index; `prepare` is applied to a batch of them on the device, then `network`.
    sample: some training images as the model sees them, (B, 3, H, W). notes: for the user, a line each.
    features, batchnorm: what the summary says of them; None where images or the weights' own are used.
    repaired: the images that are broken and shown all the same.
    """

    dataset: Dataset
    inputs: Views
    prepare: Callable[[Any, bool, int], Inputs]
    network: nn.Module
    sample: Tensor
    bad: list[BadImage]
    plan: FeaturePlan
    features: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    batchnorm: dict[str, Any] | None = None


def load_inputs(plan: FeaturePlan, model: Model, dataset: Dataset, loading: LoadSettings) -> ModelInputs:
    """Decode every image once, to keep what is planned of it; ChangedImage: one is not what was hashed."""
    load = _load_images if plan.where == "none" else _load_features
    return load(plan, model, dataset, loading)


def store_share(
    plan: FeaturePlan, model: Model, dataset: Dataset, loading: LoadSettings, share: tuple[int, int]
) -> int:
    """Store what falls to one of several processes, (which, of how many); returns how many features."""
    computer = _computer(plan, model, dataset, loading)
    return sum(computer.compute_share(view, plan.form, share) for view in plan.views)


def _prepare(plan: FeaturePlan, model: Model, loading: LoadSettings) -> Prepare:
    return Prepare(model.preprocessing, plan.augment, loading.seed)


def _computer(plan: FeaturePlan, model: Model, dataset: Dataset, loading: LoadSettings) -> FeatureComputer:
    reader, prepare = plain_reader(model, dataset, loading.memo), _prepare(plan, model, loading)
    return FeatureComputer(plan, dataset, reader, prepare, progress=loading.progress, on_wait=loading.on_wait)


def _load_images(plan: FeaturePlan, model: Model, dataset: Dataset, loading: LoadSettings) -> ModelInputs:
    uncropped = frozenset(dataset.split["train"].tolist() if AUGMENTATIONS[plan.augment].is_random else [])
    reader = replace(plain_reader(model, dataset, loading.memo), uncropped=uncropped)
    prepare = _prepare(plan, model, loading)
    pixels, bad = _decode(reader, dataset, loading)
    places = torch.from_numpy(dataset.kept([one.index for one in bad]))
    repaired = _repaired(reader, dataset, bad)
    dataset = _leave_out(bad, reader, dataset, loading.memo)
    stream: Stream | None = None
    plain: Callable[[Tensor], Tensor]
    if pixels is None:
        stream = plain = Stream(reader, places, reader.size, workers=loading.workers, memo=loading.memo)
    else:
        device = plan.device if fits_on_gpu(plan.device, pixels) else "cpu"
        held, rows = pixels.to(device), places.to(device)

        def plain(chosen: Tensor) -> Tensor:
            return held[rows[chosen.to(device)]]

    def mirrored(chosen: Tensor) -> Tensor:
        return plain(chosen).flip(3)

    return ModelInputs(
        dataset=dataset,
        inputs=views(
            plain, mirrored if len(plan.views) > 1 else None, len(places), seed=loading.seed, stream=stream
        ),
        prepare=prepare,
        network=model.network,
        sample=prepare(plain(torch.from_numpy(sample_of(dataset))), True, 1).cpu(),
        bad=bad,
        plan=plan,
        features=None,
        notes=(f"{STREAMED}; each batch is decoded anew",) if stream else (),
        repaired=repaired,
    )


def _decode(reader: Reader, dataset: Dataset, loading: LoadSettings) -> tuple[Tensor | None, list[BadImage]]:
    """The images, None where a quarter of the memory does not hold them, and those that are bad."""
    if 3 * reader.size**2 * len(dataset.images) <= ram() / 4:
        with loading.progress("reading images", len(dataset.images)) as advance:
            return reader.all(loading.workers, advance)
    if not reader.preprocessing.repair and were_decoded(dataset.digests, loading.memo):
        return None, list(reader.known.values())
    with loading.progress("checking images", len(dataset.images)) as advance:
        return None, reader.find_bad(loading.workers, advance)


def _load_features(plan: FeaturePlan, model: Model, dataset: Dataset, loading: LoadSettings) -> ModelInputs:
    assert plan.split is not None
    computer = _computer(plan, model, dataset, loading)
    reader = computer.reader
    every = [computer.compute(view, plan.form) for view in plan.views]
    reused = any(one.reused for one in every)
    if reused and reader.preprocessing.repair and not were_decoded(dataset.digests, loading.memo):
        with loading.progress("checking images", len(dataset.images)) as advance:
            reader.find_bad(loading.workers, advance)  # stored features do not tell which are repaired
    bad = computer.every_bad_image()
    kept = dataset.kept([one.index for one in bad])
    repaired = _repaired(reader, dataset, bad)
    dataset = _leave_out(bad, reader, dataset, loading.memo)
    computed = [replace(features, places=features.places[kept]) for features in every]
    plain, mirrored, row_bytes = computed[0].inputs, computed[-1].inputs, computed[0].layout.row_bytes
    inputs = views(plain, mirrored if len(plan.views) > 1 else None, len(kept), loading.seed)
    parts = plan.parts(row_bytes) if computed[0].file else 1

    def read(chosen: Tensor, both: bool) -> dict[str, Any]:
        views = zip(plan.views, computed, strict=True)
        return {name: view.hold(chosen).inputs for name, view in views if both or name == "plain"}

    return ModelInputs(
        dataset=dataset,
        inputs=replace(inputs, blocks=Blocks(max(1, BLOCK // row_bytes), parts, read)),
        prepare=lambda features, training, number: features,
        network=plan.split.suffix,
        sample=_sample(reader, kept[sample_of(dataset)], _prepare(plan, model, loading)),
        bad=bad,
        plan=plan,
        features=_summary(computed, plan),
        notes=(*computer.notes, *([LARGE] if parts > 1 else [])),
        repaired=repaired,
    )


def plain_reader(model: Model, dataset: Dataset, memo: Path) -> Reader:
    """Decodes the images as the model takes them; those known to be broken are not tried again.

    Where they are repaired, that they are broken is told all the same.
    """
    reasons = known_bad(dataset.digests, memo)
    known = {
        index: BadImage(index, str(dataset.images[index]), reasons[digest])
        for index, digest in enumerate(dataset.digests)
        if digest in reasons
    }
    reader = Reader(dataset.images, model.preprocessing, digests=dataset.digests)
    return replace(reader, repaired=known) if model.preprocessing.repair else replace(reader, known=known)


def _repaired(reader: Reader, dataset: Dataset, bad: list[BadImage]) -> tuple[str, ...]:
    """The images that are shown although they are broken."""
    shown = {dataset.digests[i] for i in reader.repaired} - {dataset.digests[one.index] for one in bad}
    pairs = zip(dataset.images, dataset.digests, strict=True)
    return tuple(str(image) for image, digest in pairs if digest in shown)


def _leave_out(bad: list[BadImage], reader: Reader, dataset: Dataset, memo: Path) -> Dataset:
    """The data set without images that are broken, which are remembered, as are those repaired.

    So is that no others are, if that is sure: what is in the store was decoded, too.
    """
    found = [*reader.repaired.values(), *bad]
    reasons = {dataset.digests[one.index]: one.reason for one in found if one.lasting}
    remember_bad(reasons, memo, dataset.digests if all(one.lasting for one in bad) else ())
    return dataset.without([one.index for one in bad], bad[0].reason) if bad else dataset


def _summary(computed: list[Features], plan: FeaturePlan) -> dict[str, Any]:
    first = computed[0]
    return {
        "where": plan.where,
        "form": str(first.form),
        "difference": first.difference,
        "computed": sum(features.computed for features in computed),
        "reused": sum(features.reused for features in computed),
        "seconds": sum(features.seconds for features in computed),
        "bytes": sum(features.layout.row_bytes for features in computed) * plan.images,
        "shapes": [list(shape) for shape in first.layout.shapes],
    }


def sample_of(dataset: Dataset) -> np.ndarray:
    """The images in `ModelInputs.sample`, all of which can be read."""
    return np.random.default_rng(0).permutation(dataset.split["train"])[:SAMPLE]


def _sample(reader: Reader, chosen: np.ndarray, prepare: Prepare) -> Tensor:
    """Some training images as the first epoch may show them."""
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(reader, chosen.tolist()))
    return prepare(torch.stack([image for image in read if isinstance(image, Tensor)]), True, 1)
