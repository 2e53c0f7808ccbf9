"""The ways a run ends early, each told in one line."""

import unicodedata
from collections.abc import Sequence


class RequestError(ValueError):
    """The request was wrong: names the knob or file and what was expected. Exit code 2."""


class RunError(RuntimeError):
    """The run itself failed although the request was right. Exit code 1."""


class Interrupted(RunError):
    """Stopped by a signal; the exit code is 128 plus its number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def brief(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list in one line, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks, and without what would colour or move a terminal's text."""
    text = " ".join(line.strip() for line in str(error).splitlines()).replace("\t", " ")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(one) == "Cc" else one for one in text)
