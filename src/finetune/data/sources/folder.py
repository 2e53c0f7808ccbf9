"""A folder of pictures in a folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS
from finetune.data.digests import file_digests
from finetune.data.images import EXTENSIONS
from finetune.data.sources.found import Found, Progress, existing_folder, numbered
from finetune.errors import RequestError, brief


def find(root: str, memo: Path | None, progress: Progress, nested: bool = False) -> Found:
    """The pictures below a folder per class, or below the classes in train, val and test.

    nested: a class is the whole path of a picture's folder, not the first part of it.

    Raises:
        RequestError: the folder is missing or cannot be read, or a class has nothing to train on.
    """
    folder, asked = existing_folder(root), f"data.root={root}"
    given = _given_sides(folder, asked)
    tops = given or {"train": folder}
    pictures: list[Path] = []
    names, sides, empty = [], [], set()
    ignored = sum(map(os.path.isfile, (path for top in tops.values() for path in top.iterdir())))
    for side, top in tops.items():
        for child in _subfolders(top, asked):
            files = list(files_below(child))
            found = [path for path in files if is_picture(path)]
            ignored += len(files) - len(found)
            pictures += found
            names += [path.parent.relative_to(top).as_posix() if nested else child.name for path in found]
            sides += [side] * len(found)
            empty |= set() if found or nested else {child.name}
    classes, _ = numbered([*names, *empty])
    present = {name for name, side in zip(names, sides, strict=True) if side == "train"}
    _check_classes(classes, present, asked)
    place = {name: label for label, name in enumerate(classes)}
    with progress("hashing pictures", len(pictures)) as advance:
        digests = file_digests(pictures, memo, advance)
    labels = np.array([place[name] for name in names])
    return Found(
        str(folder),
        asked,
        classes,
        pictures,
        labels,
        digests,
        sides if given else None,
        tuple(given),
        ignored,
    )


def _given_sides(folder: Path, asked: str) -> dict[str, Path]:
    """The folders train, val and test where the user has split the pictures."""
    subfolders = _subfolders(folder, asked)
    given = {path.name: path for path in subfolders if path.name in SPLITS}
    others = [p.name for p in subfolders if p.name not in SPLITS and any(map(is_picture, files_below(p)))]
    if given and ("train" not in given or others):
        raise RequestError(
            f"{asked}: expected either a folder per class, or only train, val and test with the classes below"
            f" them; there are {brief([*given, *others])}"
        )
    return given


def _check_classes(classes: Sequence[str], present: set[str], asked: str) -> None:
    if strange := [name for name in classes if not _is_text(name)]:
        raise RequestError(f"{asked}: expected class folders with names in UTF-8; {strange[0]!r} is not")
    if not classes:
        raise RequestError(f"{asked}: expected a folder per class with pictures in it; there are no folders")
    if not present:
        raise RequestError(
            f"{asked}: expected pictures ({', '.join(EXTENSIONS)}) in its class folders; there are none"
        )
    if empty := [name for name in classes if name not in present]:
        raise RequestError(
            f"{asked}: expected pictures to train on in every class folder; none in {brief(empty)}"
        )


def _is_text(name: str) -> bool:
    """Whether a name can be written; one of bytes that are no UTF-8 holds surrogates instead."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture; what is in it is seen when it is decoded."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _subfolders(folder: Path, asked: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(f"{asked}: {folder} cannot be read: {error.strerror}") from None


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
