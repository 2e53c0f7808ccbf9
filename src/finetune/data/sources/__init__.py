"""Where pictures and labels come from: one function for each source, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.data import splits
from finetune.data.dataset import SPLITS, Dataset
from finetune.data.sources import builtin, folder, hub, shards, table, torchvision_sets
from finetune.data.sources.found import Found, Progress, silent
from finetune.errors import RequestError, brief


@dataclass(frozen=True)
class Source:
    """A source and the knobs it takes beside `data.root`.

    root: what `data.root` is to it; empty where it brings its own pictures.
    """

    find: Callable[..., Found]
    root: str = ""
    takes: tuple[str, ...] = ()


SOURCES = {
    "clipart": Source(builtin.clipart),
    "digits": Source(builtin.digits),
    "random": Source(builtin.random),
    "folder": Source(folder.find, "the folder of your pictures", ("nested",)),
    "csv": Source(
        table.find, "a table of your pictures, .csv, .tsv or .parquet", ("image_column", "label_column")
    ),
    "torchvision": Source(torchvision_sets.find, "the folder that torchvision keeps the set in", ("name",)),
    "hf": Source(hub.find, "a folder of the set's files", ("name", "image_column", "label_column")),
    "webdataset": Source(shards.find_in_shards, "a folder of .tar shards"),
}


def load(
    source: str,
    root: str | None,
    val_fraction: float,
    test_fraction: float,
    memo: Path | None = None,
    progress: Progress = silent,
    **knobs: str | bool | None,
) -> Dataset:
    """Find the pictures of a source by the knobs of `data`; nothing is decoded yet.

    memo: the file that remembers the digests of pictures. progress: a progress bar of a name and a length.
    knobs: `name`, `nested`, `image_column`, `label_column`, for the sources that take them.

    Raises:
        RequestError: there are no pictures as the source expects them, fewer than two classes, a knob that
            the source does not take, or nothing falls to train.
    """
    chosen = SOURCES[source]
    if root is not None and not chosen.root:
        raise RequestError(
            f"data.root={root}: expected data=folder with it; data={source} brings its own pictures"
        )
    for knob, value in knobs.items():
        if value not in (None, False) and knob not in chosen.takes:
            takers = [name for name, one in SOURCES.items() if knob in one.takes]
            shown = "true" if value is True else value
            raise RequestError(f"data.{knob}={shown}: expected data={' or '.join(takers)} with it")
    if root is None and chosen.root and source != "hf":  # a set of the hub needs none
        raise RequestError(f"data.root: expected {chosen.root} with data={source}: data.root=path/to/it")
    taken = {knob: knobs[knob] for knob in chosen.takes if knob in knobs}
    found = chosen.find(root, memo=memo, progress=progress, **taken) if chosen.root else chosen.find()
    return _split(found, val_fraction, test_fraction)


def _split(found: Found, val_fraction: float, test_fraction: float) -> Dataset:
    digests, labels, warnings = found.digests, found.labels, found.warnings
    if len(found.classes) < 2 and labels.ndim == 1:
        only = f"there is only {found.classes[0]}" if found.classes else "there are none"
        raise RequestError(f"{found.asked}: expected two classes or more; {only}")
    if found.sides is None:
        split = splits.by_content(digests, labels, val_fraction, test_fraction)
    else:
        split = {side: np.flatnonzero(np.array(found.sides) == side) for side in SPLITS}
        if "val" not in (found.given or found.sides):  # validation is taken out of train, never out of test
            split = splits.take_validation(split, digests, labels, val_fraction)
    if found.sides is None and (few := splits.too_few(found.classes, labels)):
        warnings += (
            f"classes with fewer than {splits.FEWEST} pictures are used for training only: {brief(few)}",
        )
    dataset = Dataset(
        found.name,
        found.classes,
        found.images,
        labels,
        split,
        digests,
        found.ignored_files,
        warnings,
        own_split=found.sides is not None,
    )
    if not len(split["train"]):
        raise RequestError(
            f"data.val_fraction and data.test_fraction: expected pictures to train on; none of the"
            f" {len(found.images)} falls to train"
        )
    untaught = [name for name, count in dataset.to_train().items() if not count]
    elsewhere = set(labels.tolist()) if labels.ndim == 1 else set()
    if untaught := [name for name in untaught if found.classes.index(name) in elsewhere]:
        raise RequestError(
            f"{found.asked}: expected pictures to train on for every class; none for {brief(untaught)}"
        )
    return dataset
