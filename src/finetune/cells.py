"""CSV files of which a spreadsheet takes no text for a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import RequestError

# What begins a formula, as OWASP has it; behind apostrophes, too, so that reading finds what was written.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001


def like_a_formula(value: Any) -> bool:
    """Whether a spreadsheet may take a text, which is no number, for a formula."""
    if not FORMULA.match(str(value)):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return True
    return False


def cells(values: Iterable[Any]) -> list[Any]:
    """The values of a row as they are to be written: an apostrophe before a text that begins like a formula.

    Numbers stay numbers, those below 0 and those that are text already, too.
    """
    return [f"'{one}" if like_a_formula(one) else one for one in values]


def uncelled(row: Mapping[str, str]) -> dict[str, str]:
    """A row as csv.DictReader has it, each text as before `cells`; raises TypeError of too few cells."""
    return {
        name: text[1:] if text[:1] == "'" and FORMULA.match(text[1:]) else text for name, text in row.items()
    }


def table_of(rows: Iterable[Iterable[Any]], lineterminator: str = "\r\n") -> bytes:
    """A CSV file of these rows, the names of the columns first; names of files that are no UTF-8 stay so."""
    text = io.StringIO()
    csv.writer(text, lineterminator=lineterminator).writerows(map(cells, rows))
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a file of `table_of`, none where there is no file; raises RequestError of a damaged one."""
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
            return [*map(uncelled, csv.DictReader(opened))]
    except (OSError, TypeError, AttributeError, csv.Error) as error:
        raise RequestError(f"{file}: expected a table as it was written; damaged: {error}") from None
