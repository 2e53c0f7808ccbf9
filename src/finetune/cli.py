"""Where a command begins and ends: with an exit code, and an error as one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from finetune import launch, output
from finetune.choices.given import PLUGINS
from finetune.commands import app
from finetune.errors import errors_told


@errors_told()
def train() -> None:
    """What train.py runs."""
    _take_plugins()
    launch.run_hydra()


@errors_told()
def _take_plugins() -> None:
    """Take `--plugin MODULE` out of the command line; it is imported before settings are looked at."""
    words = [part for one in sys.argv for part in (one.split("=", 1) if one[:9] == "--plugin=" else [one])]
    while "--plugin" in words[:-1]:
        place = words.index("--plugin")
        os.environ[PLUGINS] = ",".join((os.environ.get(PLUGINS, ""), words[place + 1]))
        del words[place : place + 2]
    sys.argv[:] = words


def main() -> None:
    """Run a command as sys.argv has it; raises SystemExit."""
    _take_plugins()
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
