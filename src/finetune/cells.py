"""Text in a CSV file that no spreadsheet takes for a formula."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# What begins a formula, as OWASP has it; behind apostrophes, too, so that reading finds what was written.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001


def cells(values: Iterable[Any]) -> list[Any]:
    """The values of a row as they are to be written: an apostrophe before a text that begins like a formula.

    Numbers stay numbers, those below 0 and those that are text already, too.
    """
    return [f"'{one}" if _like_a_formula(one) else one for one in values]


def plain(read: Mapping[str, str]) -> dict[str, str]:
    """A row as csv.DictReader has it, each text as it was before `cells`.

    Raises:
        TypeError: it has too few cells.
    """
    return {
        name: text[1:] if text[:1] == "'" and FORMULA.match(text[1:]) else text for name, text in read.items()
    }


def _like_a_formula(value: Any) -> bool:
    if not FORMULA.match(str(value)):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return True
    return False
