"""The terminal as every command writes to it, and one line on it in the one form that all of them have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn, TaskID
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
    """A progress bar that is drawn as it advances, ten times a second at most, by whoever prints the lines.

    Drawn by a thread of its own, as rich would have it, it comes between them and takes their place.
    """

    _due = 0.0

    def update(self, task_id: TaskID, *args: Any, **changes: Any) -> None:
        """Set a task's numbers, as `completed` or `advance`."""
        due = time.monotonic() >= self._due
        super().update(task_id, *args, refresh=due, **changes)
        if due:
            self._due = time.monotonic() + 0.1


def bar(console: Console, *columns: ProgressColumn, hidden: bool = False) -> Bar:
    """A progress bar that goes when it is done; on a terminal only.

    Of what others print meanwhile only what goes to a terminal is led around the bar: a file gets its own.
    """
    return Bar(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        disable=hidden or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
