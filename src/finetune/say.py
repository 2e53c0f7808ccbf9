"""The terminal as every command writes to it, and one line on it in the one form that all of them have."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
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
from rich.text import Text

from finetune.errors import harmless, shown

SIGNS = str.maketrans({"·": "|", "±": "+-", "…": ".", "─": "-"})  # where letters are ASCII's


class Screen(Console):
    """A console on which no name of a user's does anything: no markup, no emoji codes, no escape sequences.

    A reader that has gone ends no work, and a letter that the terminal lacks becomes a question mark.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, highlight=False, **options)

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


def say(console: Console, word: str, text: str) -> None:
    """One line: a word of eight letters at most, then what there is to say; printed at once, so that a bar
    that is drawn meanwhile comes before or after it."""
    style = "yellow" if word == "warning" else "bold"
    console.print(Text.assemble((f"{word:<8}", style), f" {shown(text)}"), soft_wrap=True)


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
