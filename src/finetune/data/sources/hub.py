"""Data sets of the Hugging Face hub, or in its formats on disk, through the `datasets` package."""

from __future__ import annotations

import importlib.util
import logging
import sys
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.data.dataset import RawImage, Stored
from finetune.data.sources.labeled import (
    LabeledImages,
    existing_folder,
    label_vectors,
    number_classes,
    own_splits,
    side_of,
)
from finetune.errors import RequestError, brief
from finetune.network import hub_offline_unless_reached


def find_in_hub(
    root: str | None,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> LabeledImages:
    """A data set by its name on the hub, by a loader (`imagefolder`) and a folder, or by a folder alone.

    The columns are found by their types: the images', and the one of classes or that named label.

    Raises:
        RequestError: `datasets` is not installed, or the set cannot be loaded or has no such columns.
    """
    if not importlib.util.find_spec("datasets"):
        raise RequestError("data=hf: expected the package datasets: pip install 'finetune-toolkit[hf]'")
    setting = f"data.name={name}" if name else f"data.root={root}"
    parts, warnings = _parts(root, name, setting)
    images: list[RawImage] = []
    names: list[list[str]] = []
    splits: list[str] = []
    several, orders = False, list[list[str]]()
    for split, part in parts.items():
        image, label = _columns(part.features, image_column, label_column, setting)
        kind = part.features[label]
        told = _labels(list(part[label]), kind, setting, split)
        if told is None:
            warnings += (f"{split} has no labels and is left out",)
            continue
        several |= inner(kind) is not kind
        orders.append(getattr(inner(kind), "names", None) or [])
        images += _images(part, image, setting, split)
        names += told
        splits += [split] * len(told)
    if not images:
        raise RequestError(f"{setting}: expected images with labels; there are none")
    known = [*dict.fromkeys(chain(*orders))] if all(orders) else None
    classes, labels = label_vectors(names, known) if several else number_classes([*chain(*names)], known)
    return LabeledImages(
        name=name or str(root),
        setting=setting,
        classes=classes,
        images=images,
        labels=labels,
        splits=own_splits(splits),
        warnings=warnings,
    )


def _parts(root: str | None, name: str | None, setting: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    import datasets

    if name is None and root is None:
        raise RequestError(
            "data.name: expected a data set of the hub, or imagefolder with data.root, with data=hf"
        )
    folder = None if root is None else str(existing_folder(root))
    # It would print a line for each of five attempts to connect.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if name is not None:
            with nullcontext() if folder else hub_offline_unless_reached():
                loaded = datasets.load_dataset(name, data_dir=folder)
        elif any((Path(str(folder)) / one).exists() for one in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(folder)
        else:
            loaded = datasets.load_dataset(folder)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        told = str(error).partition("\n")[0].replace("OfflineModeIsEnabled", "no connection")
        raise RequestError(f"{setting}: cannot be loaded by the package datasets ({told})") from None
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    parts: dict[str, Any] = {}
    others = [one for one in loaded if (side := side_of(one)) is None or parts.setdefault(side, one) != one]
    warnings = (f"parts that are not train, val or test are left out: {brief(others)}",) if others else ()
    return {side: loaded[one] for side, one in parts.items()}, warnings


def _columns(features: Any, image: str | None, label: str | None, setting: str) -> tuple[str, str]:
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(inner(kind), datasets.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if key in features]
    chosen = []
    for name, wanted, found in (("image_column", image, images), ("label_column", label, labels)):
        if wanted is not None and wanted not in features:
            raise RequestError(f"data.{name}={wanted}: expected one of its columns, {brief(list(features))}")
        if wanted is None and not set(features) - set(images):
            raise RequestError(f"{setting}: expected a column of labels beside its images; there is none")
        if wanted is None and len(found) != 1:
            raise RequestError(
                f"{setting}: expected data.{name}=… with it, one of its columns, {brief(list(features))}"
            )
        chosen.append(wanted or found[0])
    if chosen[0] not in images:
        raise RequestError(f"data.image_column={chosen[0]}: expected a column of images")
    return chosen[0], chosen[1]


def inner(kind: Any) -> Any:
    """The type of a column, or of what its lists hold."""
    return getattr(kind, "feature", kind)


def _labels(values: list[Any], kind: Any, setting: str, split: str) -> list[list[str]] | None:
    """Each image's labels; None where the set has none for this split: nothing, NaN, or -1 for a class."""
    lists = values if inner(kind) is not kind else [[value] for value in values]
    known = getattr(inner(kind), "names", None)
    nothing = (None, "", -1) if known else (None, "")
    missing = [
        row
        for row, some in enumerate(lists)
        if some is None or any(one in nothing or one != one for one in some)
    ]
    if len(missing) == len(lists):
        return None
    if missing:
        raise RequestError(
            f"{setting}: expected a label for every image; row {missing[0]} of {split} has none"
        )
    return [[known[one] if known else str(one) for one in some] for some in lists]


def _images(part: Any, column: str, setting: str, split: str) -> list[RawImage]:
    """Files where the set refers to them, else images stored in it."""
    import datasets

    raw = part.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    images: list[RawImage] = []
    for index, row in enumerate(raw):
        stored = row[column] or {"bytes": None, "path": None}
        path = stored["path"]
        if stored["bytes"] is None and path is None:
            raise RequestError(f"{setting}: expected an image in every row; row {index} of {split} has none")
        if stored["bytes"] is None:
            images.append(Path(path))
        else:
            images.append(Stored(f"{split} {index}: {path or column}", partial(_content, raw, column, index)))
    return images


def _content(raw: Any, column: str, index: int) -> bytes:
    return raw[index][column]["bytes"]
