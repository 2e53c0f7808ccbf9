"""A folder of images in a folder per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from finetune.data.dataset import SPLITS
from finetune.data.images import EXTENSIONS
from finetune.data.sources.labeled import LabeledImages, existing_folder, number_classes, side_of
from finetune.data.sources.walk import Walk, files_below, is_image, kind_of, listed, tell_others
from finetune.errors import RequestError, brief, counted

# Without an image no classes: what commands make where they are typed, and audit-2.
OURS = ("outputs", "audit")


def find_in_folder(
    root: str, nested: bool = False, split: str = "auto", group: str | None = None
) -> LabeledImages:
    """The images below a folder per class, or below the classes in train, val and test.

    nested: a class is the whole path of an image's folder, not the first part of it.
    split: `auto`: folders named train, val and test are sides of the split, and nothing may lie beside them;
        `folders`: what lies beside them is left out; `none`: all are classes.
    group: `parent`: images in folders of the same name below their classes are of one group.

    Raises:
        RequestError: the folder is missing or cannot be read, or has no classes with images.
    """
    folder, setting = existing_folder(root), f"data.root={root}"
    if group and nested:
        raise RequestError(f"data.group={group}: expected data.nested=false; else such folders are classes")
    try:
        sides, warnings = ({}, []) if split == "none" else _sides(folder, split == "folders")
        if split == "auto" and not sides and not nested and not group:
            _look_for_sides(folder, warnings)
        tops = sides or {"": folder}
        found, empty, passed_over = _read(tops, nested, warnings)
        beside = f" ({tell_others(passed_over)})" if passed_over else ""
        if not found:
            images = f"images ({', '.join(EXTENSIONS)})"
            expected = f"expected a folder per class with {images} in it; there are none"
            takes = f"; data.split=none takes {brief([path.name for path in sides.values()])} for classes"
            above = [folder.parent] if listed(folder)[1] else []
            raise RequestError(expected + beside + (takes if sides else _seem(above)))
        _check_names({*(name for _, name, _ in found), *empty})
        if split == "auto" and len({name for _, name, _ in found}) < 2:
            _refuse_one_class(sides, folder, found[0][1])
    except RequestError as error:
        raise RequestError(f"{setting}: {error}") from None
    classes, _ = number_classes([*(name for _, name, _ in found), *empty])
    place = {name: label for label, name in enumerate(classes)}
    # Directly in its class an image is in "."; no folder has such a name, as hidden ones are passed over.
    below = [str(image.parent.relative_to(tops[side] / name)).lstrip(".") for image, name, side in found]
    return LabeledImages(
        name=str(folder),
        setting=setting,
        classes=classes,
        images=[image for image, _, _ in found],
        labels=np.array([place[name] for _, name, _ in found]),
        splits=[side for _, _, side in found] if sides else None,
        passed_over=passed_over,
        warnings=tuple(warnings),
        empty=empty,
        groups=below if group else (),
    )


def _read(
    tops: dict[str, Path], nested: bool, warnings: list[str]
) -> tuple[list[tuple[Path, str, str]], tuple[str, ...], Counter[str]]:
    """Each image with its class and side, the classes without one, and how many other files of each kind.

    warnings: gets a line for what is left out.
    """
    walk, found, empty, passed_over = Walk(*tops.values()), [], set(), Counter[str]()
    taught: set[str] = set()
    for side, top in tops.items():
        here, beside, listed = [], 0, []
        for where, folders, files in walk.folders(top):
            paths = [where / name for name in files]
            images = [path for path in paths if is_image(path)]
            passed_over.update(kind_of(path) for path in paths if not is_image(path))
            if where == top:
                beside, listed = len(images), [] if nested else [*folders]
                continue
            below = where.relative_to(top)
            here += [(image, below.as_posix() if nested else below.parts[0], side) for image in images]
        names = {name for _, name, _ in here}
        taught = taught or names  # of train, which comes first
        if beside:
            lie = f"{beside:,} image{'s lie' if beside > 1 else ' lies'}"
            warnings.append(f"{lie} directly in {top.name or top}, in no class folder: left out")
        elif side and not here:
            warnings.append(f"{top.name} has no images and counts as if it were not there")
        if taught.isdisjoint(names) and here:
            told = f"{top.name} has no class of those to train on, only {brief(sorted(names))}"
            warnings.append(f"{told}: {counted(len(here), 'image')} left out")
            here = []
        found += here
        empty |= {one for one in listed if here and one.partition("-")[0] not in OURS}
    if walk.back:
        warnings.append(f"links to folders that are read at their own place are left out: {brief(walk.back)}")
    return found, tuple(sorted(empty - {name for _, name, _ in found})), passed_over


def _sides(folder: Path, alone: bool) -> tuple[dict[str, Path], list[str]]:
    """The folders that are sides of the split, by side; none where they are classes. And what is left out.

    alone: only they count; else nothing with images may lie beside them.
    """
    sides: dict[str, Path] = {}
    others = []
    for path in listed(folder)[0]:
        side = side_of(path.name)
        if side in sides:
            raise RequestError(
                f"expected one folder for {side}; there are {sides[side].name} and {path.name}"
            )
        if side:
            sides[side] = path
        elif any(map(is_image, files_below(path))):
            others.append(path.name)
    sides = {side: sides[side] for side in SPLITS if side in sides}
    if alone and not sides:
        raise RequestError("expected train, val or test in it, for data.split=folders; there are none")
    if alone:
        return sides, [f"left out beside train, val and test: {brief(others)}"] if others else []
    if sides and others:
        names = [path.name for path in sides.values()]
        if {name.lower() for name in names}.isdisjoint(SPLITS) and not any(
            listed(p)[0] for p in sides.values()
        ):
            return {}, []  # classes with such names, as valid and invalid
        raise RequestError(
            "expected either a folder per class, or only train, val and test with the classes below them;"
            f" there are {brief([*names, *others])}; data.split=none takes all for classes,"
            f" data.split=folders leaves out {brief(others)}"
        )
    return sides, []


def _look_for_sides(folder: Path, warnings: list[str]) -> None:
    """Refuse folders that look like sides of the split under names that are none, or lie in the classes.

    warnings: gets a line instead where there are images beside them.
    """
    held = {path.name: listed(path) for path in listed(folder)[0]}
    sides = [one for folders, _ in held.values() for one in folders if side_of(one.name)]
    if inner := [one for one in sides if any(map(is_image, files_below(one)))]:
        named = brief([f"{one.parent.name}/{one.name}" for one in inner])
        above = f"sides of the split lie above the classes ({inner[0].name}/{inner[0].parent.name})"
        warnings.append(f"{named}: taken as images of their class; {above}; data.split=none: as meant")
    below = {name: {one.name for one in folders} for name, (folders, _) in held.items()}
    most: set[str] = max(below.values(), key=len, default=set())
    alike = [name for name, folders in below.items() if len(folders & most) > 1]
    if len(alike) < 2:
        return
    text = f"{brief(alike)} hold the same folders ({brief(sorted(most))})"
    if sum(side_of(one) is not None for one in most) > 1:
        raise RequestError(
            f"{text}: expected train, val and test above the classes, not in them;"
            " data.split=none takes them for parts of their classes"
        )
    if any(held[name][1] for name in alike):
        warnings.append(f"{text} and count as classes, as they hold images, too")
        return
    raise RequestError(
        f"{text}: expected train, val and test as their names if they are sides of the split; data.split=none"
        " takes them for classes, data.nested=true each folder in them"
    )


def _refuse_one_class(sides: dict[str, Path], folder: Path, only: str) -> None:
    """Raise RequestError where the classes of a single one seem to lie at another level."""
    there = f"expected two classes or more; there is only {only}"
    if sides:
        if any(len(listed(top / only)[0]) > 1 for top in sides.values()):
            raise RequestError(f"{there}; data.nested=true takes the folders in it for classes")
        return
    below = (where for where, folders, _ in Walk(folder).folders(folder) if folders and where != folder)
    if seem := _seem(below):
        raise RequestError(there + seem)


def _seem(places: Iterable[Path]) -> str:
    """Where the classes seem to lie, as the end of a line: the first place with two folders of images.

    Not the working folder, where folders of all kinds lie.
    """
    for place in places:
        if not place.samefile(".") and sum(bool(listed(one)[1]) for one in listed(place)[0]) > 1:
            place = place.parent if side_of(place.name) else place
            return f"; the classes seem to lie in {place}: data.root={place}"
    return ""


def _check_names(names: Iterable[str]) -> None:
    """Raise RequestError where one cannot be written: bytes that are no UTF-8 are surrogates in it."""
    for name in sorted(names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise RequestError(f"expected class folders with names in UTF-8; {name!r} is not")
