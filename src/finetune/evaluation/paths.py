"""What `PATH…` on the command line means: files, folders, globs, or a list on stdin."""

from __future__ import annotations

import glob
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console

from finetune.config.schema import Data
from finetune.data.dataset import RawImage
from finetune.data.images import EXTENSIONS
from finetune.data.sources.cells import encoding_of, is_table, read_cells
from finetune.data.sources.labeled import expand_home
from finetune.data.sources.table import Columns
from finetune.data.sources.table import read_images as read_table
from finetune.data.sources.walk import files_below, is_image, kind_of, tell_others
from finetune.errors import RequestError, near
from finetune.say import say


class Paths:
    """Images to go through one by one; a list of them is never made.

    columns: how tables are read. total: how many images there are; None where stdin names them.
    passed_over: how many other files there are in the folders, of each extension. warnings: of tables.
    RequestError: an argument names nothing, or a folder without images.
    """

    def __init__(self, arguments: Sequence[str], stdin: TextIO, columns: Columns) -> None:
        self.arguments, self.stdin, self.columns = arguments, stdin, columns
        self._others, self._told = Counter[str](), list[str]()
        counts = [self._count(argument) for argument in arguments if argument != "-"]
        self.total = None if "-" in arguments else sum(counts)
        # As this look found them: going through the images adds the same again.
        self.passed_over, self.warnings = self._others.copy(), [*self._told]

    def __iter__(self) -> Iterator[RawImage]:
        for argument in self.arguments:
            yield from _listed(self.stdin) if argument == "-" else self._found(argument)

    def tell(self, console: Console) -> None:
        """What a user should know of how they were found, a line each."""
        for line in self.warnings:
            say(console, "warning", line)
        if self.passed_over:
            say(console, "note", tell_others(self.passed_over))

    def _count(self, argument: str) -> int:
        number = sum(1 for _ in self._found(argument))
        if not number and os.path.isdir(argument):
            there = f"; {tell_others(self._others)}" if self._others else ""
            raise RequestError(f"{argument}: expected images in this folder ({', '.join(EXTENSIONS)}){there}")
        if not number:
            raise RequestError(
                f"{argument}: expected a file, a folder, a glob or -; there is no such file{near(argument)}"
            )
        return number

    def _found(self, argument: str) -> Iterator[RawImage]:
        """A file whatever its name, images in a folder and below or in a table, or what a glob matches."""
        if not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.iglob(argument, recursive=True))
            folders = {Path(one) for one in matches if os.path.isdir(one)}
            for match in matches:
                if folders.isdisjoint(Path(match).parents):  # ** matches all that is in a folder, too
                    yield from self._found(glob.escape(match) if not os.path.lexists(match) else match)
        elif os.path.isdir(argument):
            for path in files_below(Path(argument)):
                if is_image(path):
                    yield path
                else:
                    self._others[kind_of(path)] += 1
        elif is_table(Path(argument)) and os.path.exists(argument):
            cells = read_cells(Path(argument), argument)
            images, told = read_table(cells, Path(argument).parent, self.columns)
            self._told += [f"{argument}: {line}" for line in cells.warnings + told]
            if folder := self.columns.image_folder:
                self._told.append(f"{argument}: its paths start at {folder}, as the run's did")
            yield from images
        elif os.path.lexists(argument):
            yield Path(argument)


def find_images(arguments: Sequence[str], stdin: TextIO, data: Data | None = None) -> Paths:
    """Look for what each argument names; RequestError for nothing, or a folder without images.

    data: the settings of a run, by which a table is read. Where their folder of images is not here, paths
    start at the table's.
    """
    wanted = {name: getattr(data, name, None) for name in ("image_column", "image_folder", "image_suffix")}
    if not expand_home(wanted["image_folder"] or "").is_dir():
        wanted["image_folder"] = None
    return Paths(arguments, stdin, Columns(**{name: value for name, value in wanted.items() if value}))


def _listed(stdin: TextIO) -> Iterator[Path]:
    """Names in lines, or each with a zero byte behind it as `find -print0` has them: so the first block."""
    block = stdin.buffer.peek(4)  # type: ignore[attr-defined]
    encoding = encoding_of(block) or "utf-8"
    zeros = "\0" in block.decode(encoding, "ignore")
    text = io.TextIOWrapper(stdin.buffer, encoding, "surrogateescape", newline="\n")
    rest = ""
    for line in text:
        *names, rest = (rest + line).split("\0") if zeros else (line.rstrip("\r\n"), "")
        yield from (Path(name) for name in names if name)
    if rest.rstrip("\n"):
        yield Path(rest.rstrip("\n"))
