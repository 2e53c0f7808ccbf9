"""The terminal as every command writes to it, and one line on it in the one form that all of them have."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, NewLine, RenderableType
from rich.control import Control
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from finetune.errors import RequestError, harmless, shown
from finetune.output import Output

INDENT = 9  # the width of a line's first word, and of what stands below it
SIGNS = str.maketrans({"·": "|", "±": "+-", "…": ".", "─": "-"})  # where letters are ASCII's


class Screen(Console):
    """A console on which no name of a user's does anything: no markup, no emoji codes, no escape sequences.

    A reader that has gone ends no work, and a letter that the terminal lacks becomes a question mark.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, highlight=False, **options)
        self.copy: Screen | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, on the copy, too, what is no part of a bar."""
        super().print(*objects, **options)
        if self.copy and objects and not isinstance(objects[0], Control | NewLine):
            self.copy.print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich draws, its text without what would act on the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=self._fit(segment.text))

    def _fit(self, text: str) -> str:
        text = "\n".join(map(harmless, text.split("\n")))
        text = text if self.encoding.startswith("utf") else text.translate(SIGNS)
        return text.encode(self.encoding, "replace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        """Go on without a word, where rich would end the process."""
        self.quiet = True


@dataclass(frozen=True)
class Line:
    """A word of eight letters at most, what there is to say, and what is typed, to be copied in one piece.

    On a terminal it is broken between words, what follows below the text; elsewhere it is one line.
    """

    word: str
    text: str
    typed: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        first, *others = [*filter(None, [*shown(self.text).split(" "), shown(self.typed)])] or [""]
        lines, room = [first], console.width - INDENT if console.is_terminal else sys.maxsize
        for one in others:
            longer = f"{lines[-1]} {one}"
            lines[-1:] = [longer] if cell_len(longer) <= room else [lines[-1], one]
        style = "yellow" if self.word == "warning" else "bold"
        yield Text.assemble((f"{self.word:<8} ", style), f"\n{' ' * INDENT}".join(lines))


def say(console: Console, word: str, text: str, typed: str = "") -> None:
    """A line, printed at once, so that a bar that is drawn meanwhile comes before or after it."""
    console.print(Line(word, text, typed), soft_wrap=True)


def columns(*titles: str, numbers: Collection[str] = ()) -> Table:
    """A table without lines, below these titles, of which some are of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in numbers else "left")
    return table


def open_log(file: Path) -> TextIOWrapper:
    """A file to add lines to; what cannot be written there is dropped.

    RequestError: it is a link, which may lead to any file of the user's, or no file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is not waited for
    try:
        raw = Output(file, "a", opener=lambda name, _: os.open(name, flags, 0o666))
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise RequestError(f"{file}: expected a file, and no link ({error.strerror})") from None
    return TextIOWrapper(BufferedWriter(raw), "utf-8", errors="replace", line_buffering=True)


@contextmanager
def kept(screen: Screen, file: Path) -> Iterator[None]:
    """Add to a file what a screen prints meanwhile, quiet or not."""
    with open_log(file) as log:
        screen.copy = Screen(file=log, color_system=None)
        try:
            yield
        finally:
            screen.copy = None


class Bar(Progress):
    """A progress bar that goes when it is done; on a terminal only.

    It is drawn as it advances, ten times a second at most, by whoever prints the lines: drawn by a thread of
    its own, as rich would have it, it comes between them and takes their place. Of what others print
    meanwhile only what goes to a terminal is led around the bar: a file gets its own.

    total: None where nobody knows how long it will be. unit: what is counted; of images the rate is shown.
    """

    def __init__(
        self, console: Console, what: str, total: int | None, unit: str = "images", hidden: bool = False
    ) -> None:
        super().__init__(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            Rate() if unit == "images" else TextColumn(unit),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=hidden or not console.is_terminal,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self.task, self.due = self.add_task("", total=total), 0.0

    def add(self, done: int) -> None:
        """So many more are done."""
        self.reach(int(self.tasks[0].completed) + done)

    def reach(self, done: int) -> None:
        """So many are done in all."""
        due = time.monotonic() >= self.due
        self.update(self.task, completed=done, refresh=due)
        if due:
            self.due = time.monotonic() + 0.1


class Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")


@contextmanager
def progress(
    console: Console, what: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """A bar over so many images, or what `unit` says; yields the function that advances it."""
    with Bar(console, what, total, unit) as bar:
        yield bar.add
