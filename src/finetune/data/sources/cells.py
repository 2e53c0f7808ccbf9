"""The cells of a table's file: text with any of four separators, Parquet or Arrow."""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune.data.dataset import Stored
from finetune.data.images import EXTENSIONS
from finetune.data.sources.hub import inner
from finetune.errors import RequestError, brief, counted

SEPARATORS = ",\t;|"
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Cells:
    """A table's columns from left to right, of text, lists, or images that the table holds.

    setting: what asked for them, as an error names it. warnings: how they had to be read.
    """

    setting: str
    header: Sequence[str]
    columns: Sequence[Sequence[Any]]
    warnings: tuple[str, ...] = ()

    def places(self, name: str) -> list[int]:
        """Which columns have a name, in any case where none has it as it is."""
        exact = [i for i, one in enumerate(self.header) if one == name]
        return exact or [i for i, one in enumerate(self.header) if one.casefold() == name.casefold()]

    def column(self, name: str, setting: str, *kinds: type) -> Sequence[Any]:
        """The cells below a name, which the setting chooses, each of one of these kinds.

        Raises:
            RequestError: there is no such column, or several, or it holds something else.
        """
        wrong, places = f"{self.setting}: expected a column {name} ({setting})", self.places(name)
        if not places:
            nameless = any(Path(one).suffix.lower() in EXTENSIONS for one in self.header)
            advice = "; its first row is to name the columns" if nameless else ""
            raise RequestError(f"{wrong}; there are {brief(self.header)}{advice}")
        if len(places) > 1:
            raise RequestError(f"{wrong}; there are {len(places)} of this name")
        cells = self.columns[places[0]]
        if not all(isinstance(one, kinds) for one in cells):
            raise RequestError(f"{wrong} of another type than it has")
        return cells


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table."""
    return path.suffix.lower() in READERS


def read_cells(path: Path, setting: str) -> Cells:
    """Read a table.

    Raises:
        RequestError: it is missing, damaged, of another kind, or has no rows.
    """
    if not (path.is_file() and is_table(path)):
        there = "this is none" if path.exists() else "there is none"
        raise RequestError(f"{setting}: expected a table ({', '.join(READERS)}); {there}")
    kind = path.suffix.lower()
    try:
        cells = READERS[kind](path, setting)
    except RequestError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        told = str(error).partition("\n")[0]
        raise RequestError(f"{setting}: cannot be read as {kind} ({told})") from None
    if not any(cells.columns):
        raise RequestError(f"{setting}: expected rows below the names of its columns; there are none")
    return cells


def encoding_of(start: bytes) -> str | None:
    """The encoding that a text's byte order mark says; None where it has none."""
    return next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), None)


def _text(path: Path, setting: str) -> Cells:
    """The separator is the one that parts the header into most names."""
    content = path.read_bytes()
    warnings: tuple[str, ...] = ()
    marked = encoding_of(content)
    try:
        text = content.decode(marked or "utf-8")
    except UnicodeDecodeError:
        text = content.decode(marked or "cp1252")
        warnings = ("the table is not in UTF-8: read as cp1252, as Windows writes it",)
    text = re.sub(r'\A(\s*\n)?("?sep=."?\s*\n)?', "", text)  # Excel's own first line
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]
    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), ())))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    header, *rows = [[cell.strip() for cell in row] for row in lines if any(row)] or [[]]
    for number, row in enumerate(rows, 1):
        if any(row[len(header) :]):
            raise RequestError(
                f"{setting}: row {number}: expected {counted(len(header), 'cell')}, as its header"
                f" ({brief(header)}) has, not {len(row)}; a cell with {separator!r} in it goes into quotes"
            )
    columns = [[row[i] if i < len(row) else "" for row in rows] for i in range(len(header))]
    return Cells(setting, header, columns, warnings)


def _arrow(path: Path, setting: str) -> Cells:
    if not importlib.util.find_spec("pyarrow"):
        raise RequestError(f"{setting}: expected pyarrow to read it with: pip install pyarrow")
    import pyarrow.ipc
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        try:
            table = pyarrow.ipc.open_file(path.read_bytes()).read_all()
        except pyarrow.ArrowInvalid:  # the other form of Arrow, which Hugging Face's files have
            table = pyarrow.ipc.open_stream(path.read_bytes()).read_all()
    table.validate(full=True)  # of a damaged file it would read memory that is not its own
    features: dict[str, Any] = {}
    if b"huggingface" in (table.schema.metadata or {}) and importlib.util.find_spec("datasets"):
        import datasets

        features = datasets.Features.from_arrow_schema(table.schema)
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        classes = getattr(inner(features.get(name)), "names", None)
        columns.append([_cell(one, f"{name} {i}", classes) for i, one in enumerate(column.to_pylist())])
    return Cells(setting, [name.strip() for name in table.column_names], columns)


def _cell(value: Any, where: str, classes: Sequence[str] | None) -> Any:
    """What Arrow has as text, a list of texts or an image; classes: the names that its numbers stand for."""
    if isinstance(value, dict):  # as Hugging Face keeps an image
        where, value = value.get("path") or where, value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Stored(where, partial(bytes, value))
    if isinstance(value, list):
        return [_cell(one, where, classes) for one in value]
    if classes and isinstance(value, int):
        value = classes[value] if 0 <= value < len(classes) else None
    return "" if value is None else str(value).strip()


READERS: dict[str, Callable[[Path, str], Cells]] = {
    **dict.fromkeys((".csv", ".tsv"), _text),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), _arrow),
}
