"""A folder of images in a folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS
from finetune.data.images import EXTENSIONS
from finetune.data.pixels import HEIF
from finetune.data.sources.labeled import LabeledImages, existing_folder, number_classes
from finetune.errors import RequestError, brief


def find_in_folder(root: str, nested: bool = False) -> LabeledImages:
    """The images below a folder per class, or below the classes in train, val and test.

    nested: a class is the whole path of an image's folder, not the first part of it.

    Raises:
        RequestError: the folder is missing or cannot be read, or a class has nothing to train on.
    """
    folder, setting = existing_folder(root), f"data.root={root}"
    declared = _declared_splits(folder, setting)
    tops = declared or {"train": folder}
    images: list[Path] = []
    names, splits, empty = [], [], set()
    ignored = Counter(kind_of(path) for top in tops.values() for path in top.iterdir() if path.is_file())
    for split, top in tops.items():
        for child in _subfolders(top, setting):
            files = list(files_below(child))
            paths = [path for path in files if is_image(path)]
            ignored += Counter(kind_of(path) for path in files if not is_image(path))
            images += paths
            names += [path.parent.relative_to(top).as_posix() if nested else child.name for path in paths]
            splits += [split] * len(paths)
            empty |= set() if paths or nested else {child.name}
    classes, _ = number_classes([*names, *empty])
    present = {name for name, split in zip(names, splits, strict=True) if split == "train"}
    _check_classes(classes, present, setting, f" ({tell_others(ignored)})" if ignored else "")
    place = {name: label for label, name in enumerate(classes)}
    return LabeledImages(
        name=str(folder),
        setting=setting,
        classes=classes,
        images=images,
        labels=np.array([place[name] for name in names]),
        splits=splits if declared else None,
        declared=tuple(declared),
        passed_over=ignored,
    )


def _declared_splits(folder: Path, setting: str) -> dict[str, Path]:
    """The folders train, val and test where the user has split the images."""
    subfolders = _subfolders(folder, setting)
    declared = {path.name: path for path in subfolders if path.name in SPLITS}
    others = [p.name for p in subfolders if p.name not in SPLITS and any(map(is_image, files_below(p)))]
    if declared and ("train" not in declared or others):
        raise RequestError(
            f"{setting}: expected either a folder per class, or only train, val and test with the classes"
            f" below them; there are {brief([*declared, *others])}"
        )
    return declared


def _check_classes(classes: Sequence[str], present: set[str], setting: str, beside: str) -> None:
    if strange := [name for name in classes if not _is_text(name)]:
        raise RequestError(f"{setting}: expected class folders with names in UTF-8; {strange[0]!r} is not")
    if not classes:
        raise RequestError(f"{setting}: expected a folder per class with images in it; there are no folders")
    if not present:
        wanted = f"expected images ({', '.join(EXTENSIONS)}) in its class folders"
        raise RequestError(f"{setting}: {wanted}; there are none{beside}")
    if empty := [name for name in classes if name not in present]:
        raise RequestError(
            f"{setting}: expected images to train on in every class folder; none in {brief(empty)}{beside}"
        )


def _is_text(name: str) -> bool:
    """Whether a name can be written; one of bytes that are no UTF-8 holds surrogates instead."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image; what is in it is seen when it is decoded."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def kind_of(path: Path) -> str:
    """A file's extension; its name where it has none."""
    return path.suffix.lower() or path.name


def tell_others(passed_over: Counter[str]) -> str:
    """How many files are no images by their name, by extension; nothing where there are none."""
    if not passed_over:
        return ""
    kinds = brief([f"{number:,} {kind}" for kind, number in passed_over.most_common()])
    total = passed_over.total()
    way = "; pip install 'finetune-toolkit[heif]' reads HEIF" if {*HEIF} & passed_over.keys() else ""
    return f"{total:,} file{'s' if total > 1 else ''} passed over: {kinds}{way}"


def _subfolders(folder: Path, setting: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(f"{setting}: {folder} cannot be read: {error.strerror}") from None


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder but those in hidden folders, links followed, in a stable order."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where) / name for name in sorted(names))
