"""A table of images: a row each with path, label and, where there is one, the split."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

from finetune.data.dataset import RawImage, Stored
from finetune.data.sources.cells import Cells, read_cells
from finetune.data.sources.labeled import (
    LabeledImages,
    existing_folder,
    expand_home,
    label_vectors,
    number_classes,
    own_splits,
    side_of,
)
from finetune.data.sources.walk import files_below, is_image
from finetune.errors import RequestError, brief, counted

MISSING = ("", "nan", "<na>", "nat", "#n/a")  # as pandas and spreadsheets write what is not there
UNKNOWN = ("none", "null", "nil", "na", "n/a", "\\n")  # as databases may write it, and a class may be named
MARKS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
GROUPING = re.compile(r"patient|subject|person|group|case|slide|scene|video|session|animal|camera|site", re.I)
ELSEWHERE = re.compile(r"[a-z][\w+.-]*:[\\/]", re.IGNORECASE)  # a drive's letter, or an address


@dataclass(frozen=True)
class Columns:
    """What a table is told to hold, by settings of `data`."""

    image_column: str = "path"
    label_column: str | list[str] = "label"
    label_separator: str | None = None
    image_folder: str | None = None
    image_suffix: str = ""
    split: str = "auto"
    group_column: str | None = None


def find_in_table(root: str, **settings: Any) -> LabeledImages:
    """The images that a table names; a relative path starts at the table's folder.

    An image has any number of labels where `label_separator` is given, a label has a `|` or is a list, or
    several columns say 0 or 1. Files that are missing are told of when the images are read, with their reason
    like any other. settings: those of `Columns`.

    Raises:
        RequestError: the table is missing, no table, or lacks a column or a value.
    """
    path = expand_home(root)
    cells = read_cells(path, f"data.root={root}")
    return images_of(cells, str(path), path.parent, Columns(**settings))


def images_of(cells: Cells, name: str, folder: Path, wanted: Columns) -> LabeledImages:
    """The same of a table that has been read, whose relative paths start at a folder."""
    images, warnings = read_images(cells, folder, wanted)
    columns = [wanted.label_column] if isinstance(wanted.label_column, str) else wanted.label_column
    names = _labels(cells, columns, wanted.label_separator)
    if wanted.label_separator or any(len(some) != 1 for some in names):
        classes, labels = label_vectors(names)
        if wanted.label_separator and {*map(len, names)} == {1}:
            warnings += (f"data.label_separator={wanted.label_separator}: no image has several labels",)
    else:
        classes, labels = number_classes([one for (one,) in names])
        warnings += _joint(classes)
    if odd := [one for one in classes if one.lower() in UNKNOWN]:
        warnings += (f"a class named {brief(odd)}: if that means a missing label, empty its cells",)
    sides = ["split"] if wanted.split != "none" and cells.places("split") else []
    group = [wanted.group_column] if wanted.group_column else []
    kept = [cells.column(name, "data.group_column", str) for name in group]
    used = {place for name in (wanted.image_column, *columns, *sides, *group) for place in cells.places(name)}
    unread = [name for i, name in enumerate(cells.header) if i not in used and name]
    alike = next(filter(GROUPING.search, unread), None) if not group else None
    column = shlex.quote(f"data.group_column={alike}")
    advice = f"; {column} keeps images of one {alike} on one side" if alike else ""
    return LabeledImages(
        name=name,
        setting=cells.setting,
        classes=classes,
        images=images,
        labels=labels,
        splits=own_splits(_splits(cells) if sides else ()),
        notes=(f"columns that are not read: {brief(unread)}{advice}",) if unread else (),
        warnings=cells.warnings + warnings,
        empty=tuple({*columns} - {*classes}) if len(columns) > 1 else (),
        groups=["" if one.lower() in MISSING else one for one in kept[0]] if kept else (),
    )


def _splits(cells: Cells) -> list[str]:
    splits = []
    for number, written in enumerate(cells.column("split", "data.split", str), 1):
        if (side := side_of(written)) is None:
            where = f"{cells.setting}: row {number}"
            raise RequestError(
                f"{where}: expected train, val or test as its split, not {written!r};"
                " data.split=none does without"
            )
        splits.append(side)
    return splits


def _labels(cells: Cells, names: Sequence[str], separator: str | None) -> list[list[str]]:
    """The labels of each image."""
    columns = [cells.column(name, "data.label_column", str, list) for name in names]
    if len(columns) > 1:
        rows = enumerate(zip(*columns, strict=True), 1)
        return [_marked(names, row, f"{cells.setting}: row {number}") for number, row in rows]
    labels = columns[0]
    given = [one for one in labels if one]
    lists = [_listed(one) for one in labels]
    plain = [one for one, some in zip(labels, lists, strict=True) if some is None and one]
    torn = [one for one in plain if one[0] + one[-1] == "[]"]
    if torn and (len(plain) < len(given) or len(torn) == len(given)):
        where = f"{cells.setting}: row {labels.index(torn[0]) + 1}"
        raise RequestError(f"{where}: expected a list such as ['cat', 'dog'], not {torn[0]}")
    if any(one is not None for one in lists):  # a plain cell among lists is a list of one
        alone = ([] if str(one).lower() in MISSING else [one] for one in labels)
        return [one if some is None else some for some, one in zip(lists, alone, strict=True)]
    if separator := separator or ("|" if any("|" in one for one in given) else None):
        named = ("" if one.lower() in MISSING else one for one in labels)
        return [[part.strip() for part in one.split(separator) if part.strip()] for one in named]
    if missing := [number for number, one in enumerate(labels) if one.lower() in MISSING]:
        told = f", not {labels[missing[0]]!r}" if labels[missing[0]] else ""
        told += f"; {len(missing):,} of {len(labels):,} rows have no label" if len(missing) > 1 else ""
        told += "; data.label_separator='|' takes them as images without any"
        raise RequestError(f"{cells.setting}: row {missing[0] + 1}: expected a path and a label{told}")
    return [[one] for one in labels]


def _marked(names: Sequence[str], row: Sequence[Any], where: str) -> list[str]:
    """The names of the columns that have a 1."""
    if strange := [one for one in row if str(one).lower() not in MARKS]:
        raise RequestError(f"{where}: expected 0 or 1 below {brief(names)}, not {strange[0]!r}")
    return [name for name, one in zip(names, row, strict=True) if MARKS[one.lower()]]


def _listed(label: str | list[str]) -> list[str] | None:
    """The labels in a list, of Parquet's or as JSON and Python write it; None where it is none."""
    found: Any = label
    if isinstance(label, str) and label[:1] + label[-1:] in ("[]", "()", "{}"):
        parted = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", label)  # as NumPy writes it
        for read, text in ((ast.literal_eval, parted), (json.loads, label)):  # the last that can counts
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found = read(text)
    if isinstance(found, (list, tuple, set)):
        return [str(one) for one in found if one not in ("", None)]
    return None


def _joint(classes: Sequence[str]) -> tuple[str, ...]:
    """A warning where labels seem to be several, as their parts are labels, too."""
    for separator in (",", ";", " "):
        parts = {name: {part.strip() for part in name.split(separator)} for name in classes}
        if joint := [name for name in classes if len(parts[name]) > 1 and parts[name] <= set(classes)]:
            told = f"{brief(joint, 3)}: classes of their own, and so are their parts"
            return (f"{told}; data.label_separator='{separator}' takes them apart",)
    return ()


def read_images(cells: Cells, folder: Path, wanted: Columns) -> tuple[list[RawImage], tuple[str, ...]]:
    """The images that a table names or holds, and what is to be said of how they were found.

    Where no file is there as the table has it, its paths may be of another machine, or ids: see `_moved`.

    Raises:
        RequestError: there is no such column or folder, or every path is of another machine.
    """
    named = cells.column(wanted.image_column, "data.image_column", str, Stored)
    if "" in named:
        raise RequestError(f"{cells.setting}: row {named.index('') + 1}: expected a path and a label")
    if wanted.image_folder:
        folder = existing_folder(wanted.image_folder, "data.image_folder")
    names = [_written(one, folder, wanted.image_suffix) if isinstance(one, str) else one for one in named]
    written = [folder / one if isinstance(one, Path) else one for one in names]
    if any(not isinstance(one, Path) or os.path.isfile(one) for one in written):
        return written, ()
    found = _moved(names, folder)
    if any(found):
        told = f"no path in it is a file; found {sum(map(bool, found)):,} of {counted(len(found), 'image')}"
        chosen = [one or path for one, path in zip(found, written, strict=True)]
        return chosen, (f"{told} by the ends of their paths below {folder}",)
    if all(map(ELSEWHERE.match, named)):
        raise RequestError(
            f"{cells.setting}: row 1: {named[0]} is a path of another machine; expected one of this, or a"
            f" file below {folder} (data.image_folder) that has the end of it as its path"
        )
    return written, ()


def _written(name: str, folder: Path, suffix: str) -> Path:
    """A path as this machine writes it."""
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:").removeprefix("//localhost").removeprefix("//"))
    if "\\" in name and not os.path.lexists(folder / name):
        name = name.replace("\\", "/")
    name = name if name.endswith(suffix) else name + suffix  # with accents as signs of their own, or not:
    forms = () if name.isascii() else (name, normalize("NFC", name), normalize("NFD", name))
    return Path(next((one for one in forms if os.path.lexists(folder / one)), name))


def _moved(names: Sequence[Any], folder: Path) -> list[Path | None]:
    """For each path the image that it means below a folder, with or without its extension.

    Of paths with folders one and the same front is left out that all of them share: the one that leaves most
    images to be found. Where it leaves a path without a file, a file of its name in another folder is another
    image. A bare name is an id: of the only image below with this name. None, too, where the same image would
    be found for another path.
    """
    inside = {file.relative_to(folder): file for file in files_below(folder) if is_image(file)}
    places, ids = _only(inside, lambda path: path), _only(inside, lambda path: Path(path.name))
    bare = {one for one in names if len(one.parts) == 1}
    deep = {*names} - bare
    levels = zip(*(one.parts[:-1] for one in deep), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len({*names}) == 1, levels))
    tries = [{one: places.get(_plain(Path(*one.parts[n:]))) for one in deep} for n in range(shared + 1)]
    found = max(tries, key=lambda some: sum(map(bool, some.values())))
    found |= {one: ids.get(_plain(one)) for one in bare}
    times = Counter(found.values())
    return [found[one] if times[found[one]] == 1 else None for one in names]


def _only(files: Mapping[Path, Path], name: Callable[[Path], Path]) -> dict[str, Path]:
    """The files by their names, with and without extension, which no other file has."""
    known: dict[str, list[Path]] = {}
    for inside, file in files.items():
        for one in {name(inside), name(inside).with_suffix("")}:
            known.setdefault(_plain(one), []).append(file)
    return {one: some[0] for one, some in known.items() if len(some) == 1}


def _plain(path: Path) -> str:
    """A path in whatever case and however letters are coded."""
    return normalize("NFC", path.as_posix()).casefold()
