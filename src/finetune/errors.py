"""The ways a command ends early, each told in one line."""

import errno
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # that a disk takes no more
# The marks of Unicode that turn round the text after them, so that exe.gpj reads jpg.exe.
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class RequestError(ValueError):
    """The request was wrong: names the setting or file and what was expected."""

    exit_code = 2


class RunError(RuntimeError):
    """The run itself failed although the request was right."""

    exit_code = 1


class Interrupted(RunError):
    """Stopped by a signal; the exit code is 128 plus its number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def tell(error: RequestError | RunError) -> int:
    """Print an error's line on stderr; returns its exit code."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return error.exit_code


@contextmanager
def errors_told() -> Iterator[None]:
    """Tell an error of the kinds that users meet in one line, and end with its exit code."""
    try:
        yield
    except (RequestError, RunError) as error:
        sys.exit(tell(error))
    except OSError as error:  # a folder that may not be searched, a name that no file can have
        if error.errno in FULL:  # of a file that a library writes
            what = f"{brief([str(error.filename or 'a file')])}: cannot be written"
            sys.exit(tell(RunError(f"{what}: {error.strerror}")))
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        sys.exit(tell(RequestError(f"{brief([str(error.filename)])}: cannot be read: {error.strerror}")))
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def brief(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list in one line, each cut to 200 letters, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 200 else f"{name[:199]}…" for name in names[:most]) + rest


def near(path: str) -> str:
    """The end of a line on a path that is not there: the name there that was probably meant."""
    above, name = os.path.split(path.rstrip("/"))
    _, folders, files = next(os.walk(above or "."), ("", [], []))
    meant = get_close_matches(name, (folders + files)[:5000], 1, cutoff=0.7)
    return f"; did you mean {os.path.join(above, meant[0])}?" if meant else ""


def counted(number: int, noun: str) -> str:
    """1 image, 1,234 images, 2 classes."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def one_line(error: BaseException) -> str:
    """The text of an error as a terminal may show it."""
    return shown(str(error))


def shown(text: str) -> str:
    """A text, as the name of a class or a file, in one line and harmless."""
    return harmless(" ".join(line.strip() for line in text.splitlines()).replace("\t", " "))


def harmless(text: str) -> str:
    """A text without what would colour, move or turn round a terminal's text, or is no UTF-8."""
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if _acts(letter) else letter for letter in text)


def _acts(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs") or unicodedata.bidirectional(letter) in TURNS
