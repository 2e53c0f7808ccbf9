"""One line on the terminal, in the one form that all of them have."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, word: str, text: str) -> None:
    """One line: a word of eight letters at most, then what there is to say."""
    style = "yellow" if word == "warning" else "bold"
    console.print(f"[{style}]{word:<8}[/] ", end="")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
