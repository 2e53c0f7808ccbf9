"""Lines and bars on a screen, and what no name may do to it."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path

import pytest
from rich.table import Table

from finetune.errors import RequestError, counted, harmless, shown
from finetune.say import Bar, Screen, kept, open_log, say
from support.screen import Terminal, mixed, words

SOURCE = Path(__file__).parents[1] / "src"
HOSTILE = "a\x1b[2Jb\x1b]0;title\x07 [red]x[/] :smile: r31/a:b \u202egpj.exe\r\nnext\x9b1A"


def test_one_is_told_in_the_singular() -> None:
    told = [counted(number, noun) for number, noun in ((1, "image"), (0, "image"), (1234, "class"))]
    assert told == ["1 image", "0 images", "1,234 classes"]


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("kind", ["xterm-256color", "dumb"])
def test_lines_said_while_bars_live_stand_whole(
    columns: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    terminal = Terminal(columns)
    screen = Screen(file=terminal.file, width=columns)
    said = ["model", "freeze", "data", "cache", "train", "warning", "time", "folder", "watch"]
    with Bar(screen, "sweep", 9) as above, Bar(screen, "training", 9) as below:
        for word in said:
            say(screen, word, f"{word * 3} to say")
            for one in (above, below):
                one.add(1)
                one.refresh()
        threads = [type(thread).__name__ for thread in threading.enumerate()]
    lines = terminal.end()
    assert lines == [f"{word:<8} {word * 3} to say" for word in said]
    assert "_RefreshThread" not in threads  # it would draw in the midst of a line
    assert (words(lines), mixed(lines)) == (said, [])


def test_a_line_longer_than_the_terminal_is_broken_between_words() -> None:
    terminal = Terminal(40)
    screen = Screen(file=terminal.file, width=40)
    text = " ".join(map(str, range(60)))
    with Bar(screen, "bar", None) as drawn:
        say(screen, "data", text)
        drawn.refresh()
    first, *below = terminal.end()
    assert first == "data     0 1 2 3 4 5 6 7 8 9 10 11 12 13"
    assert [line[:10].strip() for line in below] == [line[9] for line in below]  # a hanging indent
    assert " ".join(line[9:] for line in (first, *below)) == text
    assert max(map(len, below)) <= 40


def test_a_line_may_have_no_more_than_its_word() -> None:
    screen = Screen(file=io.StringIO())
    say(screen, "job 0", "")
    assert screen.file.getvalue().strip() == "job 0"  # type: ignore[attr-defined]


def test_what_is_typed_stays_in_one_piece() -> None:
    terminal = Terminal(40)
    screen = Screen(file=terminal.file, width=40)
    say(screen, "watch", "", "tensorboard --logdir a")
    say(screen, "next", "freeze more:", "finetune train freeze=all")
    say(screen, "next", "freeze more:", "finetune train freeze=all seed=12345")  # 36 letters, 31 in a line
    assert terminal.end() == [
        "watch    tensorboard --logdir a",
        "next     freeze more:",
        "         finetune train freeze=all",
        "next     freeze more:",
        "         finetune train freeze=all seed=",
        "12345",
    ]
    assert b"seed=12345" in terminal.drawn


def test_what_is_said_is_kept_as_plain_lines_quiet_or_not(tmp_path: Path) -> None:
    terminal = Terminal(40)
    for screen in (Screen(file=terminal.file, width=40), Screen(quiet=True)):
        with kept(screen, tmp_path / "log.txt"), Bar(screen, "training", 9) as bar:
            say(screen, "warning", f"{'word ' * 20}\x1b[2J", "copy me")
            bar.reach(9)
            screen.print("epoch 1/1")
    terminal.end()
    assert (tmp_path / "log.txt").read_text() == 2 * f"warning  {'word ' * 20}\ufffd[2J copy me\nepoch 1/1\n"


def test_no_name_acts_on_the_terminal() -> None:
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    terminal = Terminal(120)
    screen = Screen(file=terminal.file, width=120)
    say(screen, "model", HOSTILE)
    screen.print(HOSTILE)
    screen.print(table)
    lines = terminal.end()
    text = "a\ufffd[2Jb\ufffd]0;title\ufffd [red]x[/] :smile: r31/a:b \ufffdgpj.exe next\ufffd1A"
    assert lines[0] == f"model    {text}"
    assert sum(line.count("[red]x[/] :smile: r31/a:b \ufffdgpj.") for line in lines) == 4
    assert not re.search(rb"\x1b\[2J|\x1b\]0|\x9b|\x07", terminal.drawn)


def test_what_is_harmless_stays_as_it_is() -> None:
    for name in ("Käse", "日本", "👩‍💻 at work", "می‌خواهم", "שלום", "a/b c.png"):
        assert harmless(name) == shown(name) == name


def test_a_terminal_without_a_letter_shows_a_question_mark() -> None:
    raw = io.BytesIO()
    screen = Screen(file=io.TextIOWrapper(raw, "ascii"))
    say(screen, "data", "Käse · 0.70 ± 0.02 of \udcff…")
    assert raw.getvalue() == b"data     K?se | 0.70 +- 0.02 of ?.\n"


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal(80)
    say(Screen(file=terminal.file), "warning", "look")
    terminal.end()
    assert b"\x1b[33m" not in terminal.drawn


def test_a_reader_that_has_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as file:
        screen = Screen(file=file)
        for _ in range(3):
            say(screen, "time", "1 s")
        assert screen.quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # what is left of it


def test_every_command_writes_to_such_a_screen() -> None:
    made = [path.name for path in SOURCE.rglob("*.py") if re.search(r"\bConsole\(", path.read_text())]
    assert made == []


def test_a_log_goes_into_no_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(RequestError, match=f"{name}: expected a file, and no link"):
            open_log(tmp_path / name)
    assert (tmp_path / "mine").read_text() == "mine"
