"""Where a command begins and ends: with an exit code, and an error as one line on stderr."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from finetune import launch, output
from finetune.choices.given import PLUGINS
from finetune.commands import app
from finetune.errors import RequestError, errors_told


@errors_told()
def train() -> None:
    """What train.py runs."""
    _read_words()
    launch.run_hydra()


@errors_told()
def _read_words() -> None:
    """Take `--plugin MODULE`, to be imported first, out of the command line; tell words that are one path."""
    words = [part for one in sys.argv for part in (one.split("=", 1) if one[:9] == "--plugin=" else [one])]
    while "--plugin" in words[:-1]:
        place = words.index("--plugin")
        os.environ[PLUGINS] = ",".join((os.environ.get(PLUGINS, ""), words[place + 1]))
        del words[place : place + 2]
    sys.argv[:] = [words[0], *words[2:], "--help"] if words[1:2] == ["help"] else words
    for start, word in enumerate(words[2:], 1):
        for end in range(start + 2, start + 10) if not os.path.exists(word) else ():
            if os.path.exists(path := " ".join(words[start:end])):
                raise RequestError(f"{path}: expected quotes, as its name has spaces: {shlex.quote(path)}")


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    _read_words()
    app()


def at_once(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process with its exit code, without Python's own clearing up.

    Clearing up after torch takes more than a second and does nothing that ending the process would not.
    """
    code: object = 0
    # No Python that is started on the way, by whatever library, runs what lies in the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    output.in_utf8()
    output.take_over()
    try:
        command()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # a fault of ours: told as Python tells it
        traceback.print_exc()
        code = 1
    os._exit(output.end(code if isinstance(code, int) else 1))


def console_script() -> NoReturn:
    """The console script `finetune`."""
    at_once(main)
