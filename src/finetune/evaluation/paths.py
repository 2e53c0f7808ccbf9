"""What `PATH…` on the command line means: files, folders, globs, or a list on stdin."""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from finetune.data.dataset import RawImage
from finetune.data.images import EXTENSIONS
from finetune.data.sources.cells import encoding_of, is_table, read_cells
from finetune.data.sources.table import Columns
from finetune.data.sources.table import find_images as find_in_table
from finetune.data.sources.walk import files_below, is_image, kind_of, tell_others
from finetune.errors import RequestError


@dataclass(frozen=True)
class Paths:
    """Images to go through one by one; a list of them is never made.

    column: of a table's images. total: how many there are; None where stdin names them.
    passed_over: how many other files there are in the folders, of each extension.
    """

    arguments: Sequence[str]
    stdin: TextIO
    column: str | None
    total: int | None
    passed_over: Counter[str]

    def __iter__(self) -> Iterator[RawImage]:
        for argument in self.arguments:
            yield from _listed(self.stdin) if argument == "-" else _found(argument, self.column, Counter())


def find_images(arguments: Sequence[str], stdin: TextIO, column: str | None) -> Paths:
    """Look for what each argument names; RequestError for nothing, or a folder without images."""
    passed_over: Counter[str] = Counter()
    counts = [_count(argument, column, passed_over) for argument in arguments if argument != "-"]
    return Paths(arguments, stdin, column, None if "-" in arguments else sum(counts), passed_over)


def _count(argument: str, column: str | None, passed_over: Counter[str]) -> int:
    number = sum(1 for _ in _found(argument, column, passed_over))
    if not number and os.path.isdir(argument):
        there = f"; {tell_others(passed_over)}" if passed_over else ""
        raise RequestError(f"{argument}: expected images in this folder ({', '.join(EXTENSIONS)}){there}")
    if not number:
        raise RequestError(f"{argument}: expected a file, a folder, a glob or -; there is no such file")
    return number


def _found(argument: str, column: str | None, passed_over: Counter[str]) -> Iterator[RawImage]:
    """A file whatever its name, the images in a folder and below or in a table, or what a glob matches."""
    if not os.path.lexists(argument) and glob.has_magic(argument):
        for match in sorted(glob.iglob(argument, recursive=True)):
            found = glob.escape(match) if not os.path.lexists(match) else match
            yield from _found(found, column, passed_over)
    elif os.path.isdir(argument):
        for path in files_below(Path(argument)):
            if is_image(path):
                yield path
            else:
                passed_over[kind_of(path)] += 1
    elif is_table(Path(argument)) and os.path.exists(argument):
        cells = read_cells(Path(argument), argument)
        yield from find_in_table(cells, Path(argument).parent, Columns(column or Columns.image_column))[0]
    elif os.path.lexists(argument):
        yield Path(argument)


def _listed(stdin: TextIO) -> Iterator[Path]:
    """Names in lines, or each with a zero byte behind it as `find -print0` has them."""
    start = stdin.buffer.peek(4)  # type: ignore[attr-defined]
    text = io.TextIOWrapper(stdin.buffer, encoding_of(start) or "utf-8", "surrogateescape")
    rest, zeros = "", False
    for line in text:
        zeros = zeros or "\0" in line
        *names, rest = (rest + line).split("\0") if zeros else (line.rstrip("\n"), "")
        yield from (Path(name) for name in names if name)
    if rest.strip():
        yield Path(rest.rstrip("\n"))
