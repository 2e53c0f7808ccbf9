"""Where images and labels come from: one function for each source, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finetune.data import splits
from finetune.data.brightness import find_scales
from finetune.data.dataset import SPLITS, Dataset, RawImage, Stored
from finetune.data.digests import Content, file_contents, stored_content
from finetune.data.sources import builtin, folder, hub, shards, table, torchvision_sets
from finetune.data.sources.labeled import LabeledImages, Progress, silent
from finetune.errors import RequestError, brief


@dataclass(frozen=True)
class Source:
    """A source and the settings of `data` that it takes.

    root: what `data.root` is to it; empty where it brings its own images.
    needs_root: whether that must be given.
    """

    find: Callable[..., LabeledImages]
    root: str = ""
    takes: tuple[str, ...] = ()
    needs_root: bool = True


COLUMNS = ("image_column", "label_column")
SOURCES = {
    "clipart": Source(builtin.find_clipart),
    "digits": Source(builtin.find_digits),
    "random": Source(builtin.make_noise),
    "folder": Source(folder.find_in_folder, "the folder of your images", ("nested",)),
    "csv": Source(table.find_in_table, "a table of your images, .csv, .tsv or .parquet", COLUMNS),
    "torchvision": Source(
        torchvision_sets.find_in_torchvision, "the folder that torchvision keeps the set in", ("name",)
    ),
    "hf": Source(hub.find_in_hub, "a folder of the set's files", ("name", *COLUMNS), needs_root=False),
    "webdataset": Source(shards.find_in_shards, "a folder of .tar shards"),
}


def load_dataset(
    source: str,
    root: str | None,
    val_fraction: float,
    test_fraction: float,
    memo: Path | None = None,
    progress: Progress = silent,
    **settings: str | bool | None,
) -> Dataset:
    """Find the images of a source by the settings of `data`; nothing is decoded yet.

    memo: the file that remembers the digests of images. progress: a progress bar of a name and a length.
    settings: `name`, `nested`, `image_column`, `label_column`, for the sources that take them.

    Raises:
        RequestError: there are no images as the source expects them, fewer than two classes, a setting that
            the source does not take, no such source, or nothing falls to train.
    """
    if source not in SOURCES:
        raise RequestError(f"data.source={source}: expected {', '.join(SOURCES)}")
    entry = SOURCES[source]
    if root is not None and not entry.root:
        raise RequestError(
            f"data.root={root}: expected data=folder with it; data={source} brings its own images"
        )
    for name, value in settings.items():
        if value not in (None, False) and name not in entry.takes:
            takers = [one for one, other in SOURCES.items() if name in other.takes]
            shown = "true" if value is True else value
            raise RequestError(f"data.{name}={shown}: expected data={' or '.join(takers)} with it")
    if root is None and entry.root and entry.needs_root:
        raise RequestError(f"data.root: expected {entry.root} with data={source}: data.root=path/to/it")
    taken = {name: settings[name] for name in entry.takes if name in settings}
    found = entry.find(root, **taken) if entry.root else entry.find()
    contents: list[Content] = []
    if not found.digests:
        with progress("hashing images", len(found.images)) as advance:
            contents = _contents(found.images, memo, advance)
        found = replace(found, digests=[content.sha256 for content in contents])
    brightness = find_scales(content.extent for content in contents)
    return replace(_split(found, val_fraction, test_fraction), brightness=brightness)


def _contents(images: Sequence[RawImage], memo: Path | None, advance: Callable[[int], None]) -> list[Content]:
    """What is known of each image's content: files are remembered, what is stored elsewhere is read."""
    files = iter(file_contents([image for image in images if isinstance(image, Path)], memo, advance))
    contents = []
    for image in images:
        if isinstance(image, Path):
            contents.append(next(files))
            continue
        contents.append(stored_content(image.read() if isinstance(image, Stored) else image))
        advance(1)
    return contents


def _split(found: LabeledImages, val_fraction: float, test_fraction: float) -> Dataset:
    if len(found.classes) < 2 and found.labels.ndim == 1:
        only = f"there is only {found.classes[0]}" if found.classes else "there are none"
        raise RequestError(f"{found.setting}: expected two classes or more; {only}")
    warnings = found.warnings
    if found.splits is None:
        split = splits.split_by_content(found.digests, found.labels, val_fraction, test_fraction)
        if few := splits.too_few(found.classes, found.labels):
            warnings += (
                f"classes with fewer than {splits.FEWEST} images are used for training only: {brief(few)}",
            )
    else:
        split = {name: np.flatnonzero(np.array(found.splits) == name) for name in SPLITS}
        if "val" not in (found.declared or found.splits):  # taken out of train, never out of test
            split = splits.take_validation(split, found.digests, found.labels, val_fraction)
    dataset = Dataset(
        name=found.name,
        classes=found.classes,
        images=found.images,
        labels=found.labels,
        split=split,
        digests=found.digests,
        passed_over=found.passed_over,
        warnings=warnings,
        own_split=found.splits is not None,
    )
    _check_something_trains(dataset, found.setting)
    return dataset


def _check_something_trains(dataset: Dataset, setting: str) -> None:
    """Raise RequestError where nothing falls to train, or nothing of a class that is validated or tested."""
    if not len(dataset.split["train"]):
        raise RequestError(
            f"data.val_fraction and data.test_fraction: expected images to train on; none of the"
            f" {len(dataset.images)} falls to train"
        )
    if dataset.labels.ndim == 1:
        present = set(dataset.labels.tolist())
        counts = enumerate(dataset.to_train().items())
        if untaught := [name for i, (name, count) in counts if not count and i in present]:
            raise RequestError(
                f"{setting}: expected images to train on for every class; none for {brief(untaught)}"
            )
