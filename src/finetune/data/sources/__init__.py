"""Where images and labels come from: one function for each source, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.choices.given import Table, is_given
from finetune.data import splits
from finetune.data.brightness import find_scales
from finetune.data.dataset import SPLITS, Dataset, RawImage, Stored
from finetune.data.digests import Content, file_contents, stored_content
from finetune.data.duplicates import told_groups, told_twice
from finetune.data.sources import builtin, folder, hub, shards, table, torchvision_sets
from finetune.data.sources.labeled import LabeledImages, Progress, odd_names, silent
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
TABLE = (*COLUMNS, "label_separator", "image_folder", "image_suffix", "split", "group_column")
SOURCES: Table[Source] = Table(
    clipart=Source(builtin.find_clipart),
    digits=Source(builtin.find_digits),
    random=Source(builtin.make_noise),
    folder=Source(folder.find_in_folder, "the folder of your images", ("nested", "split", "group")),
    csv=Source(table.find_in_table, "a table of your images, .csv, .tsv or .parquet", TABLE),
    torchvision=Source(
        torchvision_sets.find_in_torchvision, "the folder that torchvision keeps the set in", ("name",)
    ),
    hf=Source(hub.find_in_hub, "a folder of the set's files", ("name", *COLUMNS), needs_root=False),
    webdataset=Source(shards.find_in_shards, "a folder of .tar shards", ("split",)),
)
DRAW = ("split_seed", "folds", "fold")  # of any source
SETTINGS = {*DRAW, *(name for entry in SOURCES.values() for name in entry.takes)}


def load_dataset(
    source: str,
    root: str | None,
    val_fraction: float,
    test_fraction: float,
    memo: Path | None = None,
    *,
    measured: bool = False,
    **how: Any,
) -> Dataset:
    """Find the images of a source by the settings of `data`; nothing is decoded yet.

    measured: nothing is trained on them: one class will do, or one side. how: as `gather` takes it.

    Raises:
        RequestError: as of `gather`; there are fewer than two classes, or nothing falls to train.
    """
    seed, folds, fold = (how.pop(name, None) for name in DRAW)
    found = gather(source, root, memo, **how)
    if found.redrawn:  # else no group of its is parted
        found = replace(found, splits=None) if seed or folds else replace(found, groups=())
    fixed = found.splits is not None and (folds or "val" in (found.declared or found.splits))
    if fixed and (folds or seed):
        asked = f"data.folds={folds}" if folds else f"data.split_seed={seed}"
        aside = "; data.split=none leaves theirs aside" if "split" in SOURCES[source].takes else ""
        raise RequestError(f"{asked}: expected images without a split of their own{aside}")
    if folds:
        found = replace(found, splits=["train"] * len(found.images), declared=SPLITS)
    dataset = _split(found, val_fraction, test_fraction, seed)
    if folds:
        dataset = dataset.in_folds(folds)
        dataset = dataset if fold is None else dataset.in_fold(fold, val_fraction)
    if measured:  # what is said of training does not matter
        return replace(dataset, warnings=found.warnings)
    _check_something_trains(dataset, found)
    return dataset


def gather(
    source: str,
    root: str | None,
    memo: Path | None = None,
    progress: Progress = silent,
    **asked: str | list[str] | bool | None,
) -> LabeledImages:
    """The images of a source, with their digests.

    memo: the file that remembers the digests of images. progress: a progress bar of a name and a length.
    asked: those of SETTINGS, for the sources that take them.

    Raises:
        RequestError: there are no images as the source expects them, a setting that the source does not take,
            or no such source.
    """
    if source not in SOURCES and not is_given(source):
        raise RequestError(f"data.source={source}: expected {', '.join(SOURCES)}")
    entry = SOURCES[source]
    if root is not None and not entry.root:
        raise RequestError(
            f"data.root={root}: expected data=folder with it; data={source} brings its own images"
        )
    for name, value in asked.items():
        if isinstance(value, list) and "label_separator" not in entry.takes:
            raise RequestError(f"data.{name}=[{','.join(value)}]: expected data=csv with several columns")
        takers = [one for one, other in SOURCES.items() if name in other.takes and value != "folders"]
        if (
            value not in (None, False, "auto")
            and source not in (takers or ["folder"])
            and not is_given(source)
        ):
            shown = "true" if value is True else value
            raise RequestError(
                f"data.{name}={shown}: expected data={' or '.join(takers or ['folder'])} with it"
            )
    if root is None and entry.root and entry.needs_root:
        raise RequestError(f"data.root: expected {entry.root} with data={source}: data.root=path/to/it")
    taken = {name: asked[name] for name in entry.takes if asked.get(name) is not None}
    found = entry.find(root, **taken) if entry.root else entry.find(**taken)
    if source in ("folder", "csv", "webdataset") or is_given(source):  # others' are made with care
        found = replace(found, warnings=found.warnings + odd_names(found.classes))
    if found.digests:
        return found
    with progress("hashing images", len(found.images)) as advance:
        contents = _contents(found.images, memo, advance)
    scales = find_scales(content.extent for content in contents)
    return replace(found, digests=[content.sha256 for content in contents], brightness=scales)


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


def _split(found: LabeledImages, val_fraction: float, test_fraction: float, seed: int | None) -> Dataset:
    warnings, notes, units = found.warnings, found.notes, splits.find_units(found.digests, found.groups, seed)
    if found.splits is None:
        split = splits.split_by_content(units, found.labels, val_fraction, test_fraction)
        if few := splits.too_few(found.classes, found.labels):
            warnings += (
                f"classes with fewer than {splits.FEWEST} images are used for training only: {brief(few)}",
            )
        if test_fraction and (none := splits.untested(found.classes, found.labels, split["test"])):
            notes += (f"no test image of {brief(none)}: the test says nothing of that; data.folds=5 would",)
    else:
        split = {name: np.flatnonzero(np.array(found.splits) == name) for name in SPLITS}
        if "val" not in (found.declared or found.splits):  # taken out of train, never out of test
            split = splits.take_validation(split, units, found.labels, val_fraction)
    dataset = Dataset(
        name=found.name,
        classes=found.classes,
        images=found.images,
        labels=found.labels,
        split=split,
        digests=found.digests,
        passed_over=found.passed_over,
        warnings=warnings,
        notes=notes,
        own_split=found.splits is not None,
        brightness=found.brightness,
        units=units if found.groups or seed else (),
        groups=found.groups if any(found.groups) else (),
    )
    if found.groups:
        note, parted = told_groups(found.groups, split)
        dataset, warnings = replace(dataset, notes=(*dataset.notes, note)), warnings + parted
    return replace(dataset, warnings=warnings + told_twice(dataset))


def _check_something_trains(dataset: Dataset, found: LabeledImages) -> None:
    """Raise RequestError where there are no two classes, or one of them has nothing to train on."""
    several, train = dataset.labels.ndim > 1, len(dataset.split["train"])
    if len(found.classes) < 2 and not several:
        only = f"there is only {found.classes[0]}" if found.classes else "there are none"
        why = "".join(f"; {line}" for line in found.warnings)
        raise RequestError(f"{found.setting}: expected two classes or more; {only}{why}")
    if found.empty:
        expected = "expected images to train on in every class folder, or of every column's label"
        raise RequestError(f"{found.setting}: {expected}; none in {brief(found.empty)}")
    if not train and dataset.own_split:
        there = " and ".join(side for side, number in dataset.counts().items() if number)
        raise RequestError(f"{found.setting}: expected images to train on; there are only those of {there}")
    if not train:
        raise RequestError(
            f"data.val_fraction and data.test_fraction: expected images to train on; none of the"
            f" {len(dataset.images)} falls to train"
        )
    if not several:
        present = set(dataset.labels.tolist())
        counts = enumerate(dataset.to_train().items())
        if untaught := [name for i, (name, count) in counts if not count and i in present]:
            raise RequestError(
                f"{found.setting}: expected images to train on for every class; none for {brief(untaught)}"
            )
