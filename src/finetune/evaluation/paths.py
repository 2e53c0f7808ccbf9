"""What `PATH…` on the command line means: files, folders, globs, or a list on stdin."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from finetune.data.images import EXTENSIONS
from finetune.data.sources.folder import files_below, is_image, kind_of, tell_others
from finetune.errors import RequestError


@dataclass(frozen=True)
class Paths:
    """Images to go through one by one; a list of them is never made.

    total: how many there are; None where stdin names them.
    passed_over: how many other files there are in the folders, of each extension.
    """

    arguments: Sequence[str]
    stdin: TextIO
    total: int | None
    passed_over: Counter[str]

    def __iter__(self) -> Iterator[Path]:
        for argument in self.arguments:
            yield from _listed(self.stdin) if argument == "-" else _found(argument, Counter())


def find_images(arguments: Sequence[str], stdin: TextIO) -> Paths:
    """Look for what each argument names.

    Raises:
        RequestError: an argument names nothing, or a folder without images.
    """
    passed_over: Counter[str] = Counter()
    counts = [_count(argument, passed_over) for argument in arguments if argument != "-"]
    return Paths(arguments, stdin, None if "-" in arguments else sum(counts), passed_over)


def _count(argument: str, passed_over: Counter[str]) -> int:
    number = sum(1 for _ in _found(argument, passed_over))
    if not number and os.path.isdir(argument):
        there = f"; {tell_others(passed_over)}" if passed_over else ""
        raise RequestError(f"{argument}: expected images in this folder ({', '.join(EXTENSIONS)}){there}")
    if not number:
        raise RequestError(f"{argument}: expected a file, a folder, a glob or -; there is no such file")
    return number


def _found(argument: str, passed_over: Counter[str]) -> Iterator[Path]:
    """A file whatever its name, the images in a folder and below, or what a glob matches of both."""
    if not os.path.lexists(argument) and glob.has_magic(argument):
        for match in sorted(glob.iglob(argument, recursive=True)):
            yield from _found(glob.escape(match) if not os.path.lexists(match) else match, passed_over)
    elif os.path.isdir(argument):
        for path in files_below(Path(argument)):
            if is_image(path):
                yield path
            else:
                passed_over[kind_of(path)] += 1
    elif os.path.lexists(argument):
        yield Path(argument)


def _listed(stdin: TextIO) -> Iterator[Path]:
    for line in stdin:
        if name := line.rstrip("\r\n"):
            yield Path(name)
