"""Data sets of the Hugging Face hub, or in its formats on disk, through the `datasets` package."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from finetune.data.dataset import Picture, Stored
from finetune.data.digests import file_digests
from finetune.data.sources.found import SIDES, Found, Progress, brought, existing_folder, numbered, vectors
from finetune.errors import RequestError, brief


def find(
    root: str | None,
    memo: Path | None,
    progress: Progress,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Found:
    """A data set by its name on the hub, by a loader (`imagefolder`) and a folder, or by a folder alone.

    The columns are found by their types: the pictures', and the one of classes or that named label.

    Raises:
        RequestError: `datasets` is not installed, or the set cannot be loaded or has no such columns.
    """
    if not importlib.util.find_spec("datasets"):
        raise RequestError("data=hf: expected the package datasets: pip install 'finetune-toolkit[hf]'")
    asked = f"data.name={name}" if name else f"data.root={root}"
    parts, warnings = _parts(root, name, asked)
    images: list[Picture] = []
    digests: list[str] = []
    names: list[list[str]] = []
    sides: list[str] = []
    several, known = False, None
    for side, part in parts.items():
        image, label = _columns(part.features, image_column, label_column, asked)
        several, known, told = _labels(part, label, asked, side)
        if told is None:
            warnings += (f"{side} has no labels and is left out",)
            continue
        with progress(f"hashing pictures, {side}", len(part)) as advance:
            rows, hashes = _pictures(part, image, side, memo, advance)
        images, digests, names = images + rows, digests + hashes, names + told
        sides += [side] * len(rows)
    if not images or "train" not in sides:
        raise RequestError(f"{asked}: expected pictures with labels to train on; there are none")
    classes, labels = vectors(names) if several else numbered([one for (one,) in names])
    if known is not None:  # in their own order, and those without pictures, too
        order = [known.index(one) for one in classes]
        if several:
            wide = np.zeros((len(labels), len(known)), np.float32)
            wide[:, order] = labels
            labels = wide
        else:
            labels = np.array(order, dtype=np.int64)[labels]
        classes = tuple(known)
    name = name or str(root)
    return Found(name, asked, classes, images, labels, digests, brought(sides), warnings=warnings)


def _parts(root: str | None, name: str | None, asked: str) -> tuple[dict[str, Any], tuple[str, ...]]:
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
            with _offline(folder is None and not _reachable()):
                loaded = datasets.load_dataset(name, data_dir=folder)
        elif any((Path(str(folder)) / one).exists() for one in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(folder)
        else:
            loaded = datasets.load_dataset(folder)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        told = str(error).partition("\n")[0].replace("OfflineModeIsEnabled", "no connection")
        raise RequestError(f"{asked}: cannot be loaded by the package datasets ({told})") from None
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    others = [one for one in loaded if one not in SIDES]
    warnings = (f"parts that are not train, val or test are left out: {brief(others)}",) if others else ()
    return {SIDES[one]: part for one, part in loaded.items() if one in SIDES}, warnings


def _reachable() -> bool:
    """Whether the hub answers at all; the library would find out by five attempts that take a minute."""
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((str(hub.hostname), hub.port or 443), timeout=10):
            return True
    except OSError:
        return bool(getproxies())  # the way to it may be another


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """The library's own offline mode: it loads what it has on disk and tells at once what it has not."""
    import datasets
    from huggingface_hub import constants

    modules = (datasets.config, constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module, was in zip(modules, before, strict=True):
        module.HF_HUB_OFFLINE = was or offline
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = was


def _columns(features: Any, image: str | None, label: str | None, asked: str) -> tuple[str, str]:
    import datasets

    pictures = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(_inner(kind), datasets.ClassLabel)]
    labels = labels or [key for key in ("label", "labels") if key in features]
    chosen = []
    for knob, wanted, found in (("image_column", image, pictures), ("label_column", label, labels)):
        if wanted is not None and wanted not in features:
            raise RequestError(f"data.{knob}={wanted}: expected one of its columns, {brief(list(features))}")
        if wanted is None and not set(features) - set(pictures):
            raise RequestError(f"{asked}: expected a column of labels beside its pictures; there is none")
        if wanted is None and len(found) != 1:
            raise RequestError(
                f"{asked}: expected data.{knob}=… with it, one of its columns, {brief(list(features))}"
            )
        chosen.append(wanted or found[0])
    if chosen[0] not in pictures:
        raise RequestError(f"data.image_column={chosen[0]}: expected a column of pictures")
    return chosen[0], chosen[1]


def _inner(kind: Any) -> Any:
    """The type of a column, or of what its lists hold."""
    return getattr(kind, "feature", kind)


def _labels(
    part: Any, column: str, asked: str, side: str
) -> tuple[bool, list[str] | None, list[list[str]] | None]:
    """Whether there are several a picture, the classes the set itself names, and each picture's labels.

    Where the set has none for this side (-1 or nothing), the last is None.
    """
    kind, values = part.features[column], part[column]
    values = list(values)
    several = _inner(kind) is not kind
    known = getattr(_inner(kind), "names", None)
    if not several:
        missing = sum(value is None or value == -1 for value in values)
        if missing == len(values):
            return several, known, None
        if missing:
            raise RequestError(f"{asked}: expected a label for every picture; {missing} of {side} have none")
    lists = values if several else [[value] for value in values]
    return several, known, [[known[one] if known else str(one) for one in some] for some in lists]


def _pictures(
    part: Any, column: str, side: str, memo: Path | None, advance: Any
) -> tuple[list[Picture], list[str]]:
    """Files where the set refers to them, else pictures stored in it; and the digest of each."""
    import datasets

    raw = part.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    images: list[Picture] = []
    digests: dict[int, str] = {}
    for index, row in enumerate(raw):
        content, path = row[column]["bytes"], row[column]["path"]
        if content is None:
            images.append(Path(path))
            continue
        images.append(Stored(f"{side} {index}: {path or column}", partial(_content, raw, column, index)))
        digests[index] = hashlib.sha256(content).hexdigest()
        advance(1)
    files = [index for index in range(len(images)) if index not in digests]
    digests |= zip(files, file_digests([Path(str(images[i])) for i in files], memo, advance), strict=True)
    return images, [digests[index] for index in range(len(images))]


def _content(raw: Any, column: str, index: int) -> bytes:
    return raw[index][column]["bytes"]
