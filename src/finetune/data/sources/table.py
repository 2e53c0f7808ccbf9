"""A table of images: a row each with path, label and, where there is one, the split."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

from finetune.data.sources.labeled import (
    LabeledImages,
    expand_home,
    label_vectors,
    number_classes,
    own_splits,
    side_of,
)
from finetune.errors import RequestError, brief

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def find_in_table(
    root: str, image_column: str | None = None, label_column: str | None = None, split: str = "auto"
) -> LabeledImages:
    """The images that a table names; a relative path starts at the table's folder.

    Where any label has a `|`, every image has any number of labels. Files that are missing are told of when
    the images are read, with their reason like any other. split: `none`: whatever the column split says.

    Raises:
        RequestError: the table is missing, no table, or lacks a column or a value.
    """
    path, setting = expand_home(root), f"data.root={root}"
    rows = _rows(path, setting)
    image, label = image_column or "path", label_column or "label"
    for column, name in ((image, "image_column"), (label, "label_column")):
        if column not in rows[0]:
            raise RequestError(
                f"{setting}: expected a column {column} (data.{name}); there are {brief(list(rows[0]))}"
            )
    several = any("|" in row[label] for row in rows)
    splits = []
    for number, row in enumerate(rows, 1):
        where = f"{setting}: row {number}"
        if not row[image] or not (row[label] or several):
            raise RequestError(f"{where}: expected a path and a label")
        if split != "none" and "split" in row:
            if (side := side_of(row["split"])) is None:
                raise RequestError(
                    f"{where}: expected train, val or test as its split, not {row['split']!r};"
                    " data.split=none does without"
                )
            splits.append(side)
    images = [path.parent / row[image] for row in rows]
    if several:
        parts = [[part.strip() for part in row[label].split("|")] for row in rows]
        classes, labels = label_vectors([list(filter(None, some)) for some in parts])
    else:
        classes, labels = number_classes([row[label] for row in rows])
    return LabeledImages(
        name=str(path),
        setting=setting,
        classes=classes,
        images=images,
        labels=labels,
        splits=own_splits(splits),
    )


def _rows(path: Path, setting: str) -> list[dict[str, str]]:
    if not path.is_file():
        there = "this is none" if path.exists() else "there is none"
        raise RequestError(f"{setting}: expected a table, .csv, .tsv or .parquet; {there}")
    kind = path.suffix.lower()
    if kind not in (*DELIMITERS, ".parquet"):
        raise RequestError(f"{setting}: expected a table, .csv, .tsv or .parquet")
    try:
        rows = _parquet(path, setting) if kind == ".parquet" else _text(path, DELIMITERS[kind])
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{setting}: cannot be read as {kind} ({str(error).partition(chr(10))[0]})"
        ) from None
    if not rows:
        raise RequestError(f"{setting}: expected rows below the names of its columns; there are none")
    return [{key: "" if value is None else str(value).strip() for key, value in row.items()} for row in rows]


def _text(path: Path, delimiter: str) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restkey="", restval="", strict=True)
        return [{key: value for key, value in row.items() if key} for row in reader]


def _parquet(path: Path, setting: str) -> list[dict[str, Any]]:
    if not importlib.util.find_spec("pyarrow"):
        raise RequestError(f"{setting}: expected pyarrow to read Parquet with: pip install pyarrow")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()
