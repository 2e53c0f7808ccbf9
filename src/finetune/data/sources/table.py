"""A table of pictures: a row each with path, label and, where there is one, the side of the split."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

from finetune.data.digests import file_digests
from finetune.data.sources.found import SIDES, Found, Progress, brought, expanded, numbered, vectors
from finetune.errors import RequestError, brief

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def find(
    root: str,
    memo: Path | None,
    progress: Progress,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Found:
    """The pictures that a table names; a relative path starts at the table's folder.

    Where any label has a `|`, every picture has any number of labels. Files that are missing are told of when
    the pictures are read, with their reason like any other.

    Raises:
        RequestError: the table is missing, no table, or lacks a column or a value.
    """
    path, asked = expanded(root), f"data.root={root}"
    rows = _rows(path, asked)
    image, label = image_column or "path", label_column or "label"
    for column, knob in ((image, "image_column"), (label, "label_column")):
        if column not in rows[0]:
            raise RequestError(
                f"{asked}: expected a column {column} (data.{knob}); there are {brief(list(rows[0]))}"
            )
    several = any("|" in row[label] for row in rows)
    sides = []
    for number, row in enumerate(rows, 1):
        where = f"{asked}: row {number}"
        if not row[image] or not (row[label] or several):
            raise RequestError(f"{where}: expected a path and a label")
        if "split" in row:
            if row["split"] not in SIDES:
                raise RequestError(f"{where}: expected train, val or test as its split, not {row['split']!r}")
            sides.append(SIDES[row["split"]])
    pictures = [path.parent / row[image] for row in rows]
    with progress("hashing pictures", len(pictures)) as advance:
        digests = file_digests(pictures, memo, advance)
    if several:
        parts = [[part.strip() for part in row[label].split("|")] for row in rows]
        classes, labels = vectors([list(filter(None, some)) for some in parts])
    else:
        classes, labels = numbered([row[label] for row in rows])
    return Found(str(path), asked, classes, pictures, labels, digests, brought(sides))


def _rows(path: Path, asked: str) -> list[dict[str, str]]:
    if not path.is_file():
        there = "this is none" if path.exists() else "there is none"
        raise RequestError(f"{asked}: expected a table, .csv, .tsv or .parquet; {there}")
    kind = path.suffix.lower()
    if kind not in (*DELIMITERS, ".parquet"):
        raise RequestError(f"{asked}: expected a table, .csv, .tsv or .parquet")
    try:
        rows = _parquet(path, asked) if kind == ".parquet" else _text(path, DELIMITERS[kind])
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"{asked}: cannot be read as {kind} ({str(error).partition(chr(10))[0]})"
        ) from None
    if not rows:
        raise RequestError(f"{asked}: expected rows below the names of its columns; there are none")
    return [{key: "" if value is None else str(value).strip() for key, value in row.items()} for row in rows]


def _text(path: Path, delimiter: str) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restkey="", restval="", strict=True)
        return [{key: value for key, value in row.items() if key} for row in reader]


def _parquet(path: Path, asked: str) -> list[dict[str, Any]]:
    if not importlib.util.find_spec("pyarrow"):
        raise RequestError(f"{asked}: expected pyarrow to read Parquet with: pip install pyarrow")
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()
