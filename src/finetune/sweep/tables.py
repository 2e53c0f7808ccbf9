"""A leaderboard for the terminal, as leaderboard.csv and as leaderboard.md."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.atomic import write_atomically
from finetune.cells import table_of
from finetune.choices.best import NAMES
from finetune.errors import counted, shown
from finetune.runs.folder import is_sweep
from finetune.runs.sweeps import SweepJob, ranges
from finetune.say import say
from finetune.sweep.leaderboard import REPEATS, Leaderboard, Spread

NOTE = "Ranked by validation {}, ties by the lower validation loss; the test split chooses nothing."
UNRANKED = "Not ranked: there are no images to validate with, and the test split chooses nothing."
SHORT = {"accuracy": "acc", "map": "mAP"}
SURE = "95 %"
SPARED = ("time", "jobs", "test loss", "val loss")  # not on a narrow terminal; the files have it
MOST = 30  # rows on the terminal
WORDS = {"interrupted": "stopped"}  # at most eight letters


def write_leaderboard(board: Leaderboard) -> None:
    """Write leaderboard.csv, leaderboard.md and report.html; raises RunError where it cannot."""
    write_atomically(board.sweep / "leaderboard.csv", as_csv(board))
    write_atomically(board.sweep / "leaderboard.md", as_markdown(board).encode("utf-8", "surrogateescape"))
    if is_sweep(board.sweep):
        from finetune.sweep.page import write_page  # not at the start of every command

        write_page(board)


def as_csv(board: Leaderboard) -> bytes:
    """A line for each set of settings, then one for each job without a result; exact numbers, seconds."""
    columns = [name for metric in board.metrics for name in (metric, f"{metric}_std")]
    ends = ["low", "high", "level_with_best"]
    rows: list[list[Any]] = [
        ["rank", *board.varying, "n", *columns, *ends, "best_run", "jobs", "status", "reason"]
    ]
    for rank, row in enumerate(board.rows, 1):
        spreads = [row.spread(metric) for metric in board.metrics]
        numbers = [number for one in spreads for number in ((one.mean, one.std) if one else (None, None))]
        jobs = " ".join(board.name(job) for job in row.jobs)
        settings = row.settings.values()
        sure = [*(row.interval or (None, None)), row.level]
        rows.append([rank, *settings, len(row.jobs), *numbers, *sure, row.best.folder, jobs, "finished", ""])
    for job in board.others:
        own = [job.overrides.get(key) for key in board.varying]
        blank = [None] * len([*columns, *ends])
        rows.append([None, *own, None, *blank, None, board.name(job), job.status, job.reason])
    return table_of(rows, lineterminator="\n")


def as_markdown(board: Leaderboard) -> str:
    """The same for people."""
    lines = [f"# {_plain(str(board.sweep))}", ""]
    if board.rows:
        best = board.rows[0].best
        note = ". ".join([ranking(board).removesuffix("."), *notes_of(board), ""]).rstrip()
        lines += [note, "", *_markdown(columns_of(board)), ""]
        lines += ["Best run: `{}`".format(shown(str(best.folder)).replace("`", "'")), ""] if best.val else []
    if board.others:
        lines += [*_markdown(others_of(board)), ""]
    return "\n".join(lines)


def ranking(board: Leaderboard) -> str:
    named = " or ".join(NAMES[name] for name in board.deciding)
    return NOTE.format(named) if board.rows[0].best.val else UNRANKED


def others_of(board: Leaderboard) -> dict[str, list[str]]:
    return {
        "job": [board.name(job) for job in board.others],
        "settings": [_settings(board, job, *REPEATS) for job in board.others],
        "status": [job.status for job in board.others],
        "reason": [job.reason for job in board.others],
    }


def print_leaderboard(board: Leaderboard, console: Console) -> None:
    """The table as far as the terminal is wide, the best run's folder, and what has no result."""
    console.print()
    if board.rows:
        columns = {title: cells[:MOST] for title, cells in columns_of(board).items()}
        console.print(_fitting(columns, [*map(title_of, board.metrics), SURE], console))
        if len(board.rows) > MOST:
            say(console, "more", f"{counted(len(board.rows) - MOST, 'row')} below these")
        best = board.rows[0]
        seeds = f"the best of its {len(best.jobs)} repeats" if len(best.jobs) > 1 else ""
        text = ", ".join(filter(None, (_settings(board, best.best), seeds, "by validation")))
        say(console, *(("best", f"{best.best.folder}: {text}") if best.best.val else ("note", UNRANKED)))
        for note in notes_of(board):
            say(console, "note", note)
    ended = [job for job in board.others if job.status != "unfinished"]
    for job in ended[:MOST]:
        settings = _settings(board, job, *REPEATS)
        named = f"job {board.name(job)}" + (f" ({settings})" if settings else "")
        say(console, WORDS.get(job.status, job.status), f"{named}: {job.reason}")
    if len(ended) > MOST:
        say(console, "more", f"{counted(len(ended) - MOST, 'job')} without a result, as the table has them")
    if waiting := [board.name(job) for job in board.others if job.status == "unfinished"]:
        jobs = f"{counted(len(waiting), 'job')} {'has' if len(waiting) == 1 else 'have'}"
        resume = f"; finetune resume {shlex.quote(str(board.sweep))} goes on" if is_sweep(board.sweep) else ""
        say(console, "open", f"{jobs} not ended: {ranges(waiting)}{resume}")
    page = " and report.html" if is_sweep(board.sweep) else ""
    say(console, "table", f"{board.sweep}/leaderboard.csv and leaderboard.md{page}")


def columns_of(board: Leaderboard) -> dict[str, list[str]]:
    """The cells under each title; a metric that no job has gets no column."""
    rows = board.rows
    columns = {"#": [f"{rank} =" if row.level else str(rank) for rank, row in enumerate(rows, 1)]}
    for key, title in _short(board.varying).items():
        columns[title] = [_brief(row.settings[key]) for row in rows]
    if any(len(row.jobs) > 1 for row in rows):
        columns["n"] = [str(len(row.jobs)) for row in rows]
    for metric in board.metrics:
        cells = [_spread(metric, row.spread(metric)) for row in rows]
        if any(cells):
            columns[title_of(metric)] = cells
        if metric == f"test_{board.deciding[0]}" and any(row.interval for row in rows):
            shown = [row.interval if row.deciding == board.deciding[0] else None for row in rows]
            columns[SURE] = ["{:.2f} to {:.2f}".format(*ends) if ends else "" for ends in shown]
    columns["jobs"] = [ranges(board.name(job) for job in row.jobs) for row in rows]
    return columns


def notes_of(board: Leaderboard) -> list[str]:
    """What the signs in the table mean, and what they cannot say."""
    rest = [row.level for row in board.rows[1:]]
    told = {
        "=: its accuracy may be the best one's (paired bootstrap on the same test images, 95 %)": any(rest),
        f"{rest.count(None)} of {len(rest)} rows are not compared with the best: they have other test images,"
        " or keep no answers": None in rest,
        "±: the spread over repeats, not how sure a number is": any(len(row.jobs) > 1 for row in board.rows),
    }
    return [text for text, holds in told.items() if holds]


def _fitting(columns: dict[str, list[str]], metrics: list[str], console: Console) -> Table:
    """The table with as many columns as there is room for; on a narrow terminal all settings are in one."""
    shorter = {title: cells for title, cells in columns.items() if title not in SPARED}
    for table in (_table(columns), _table(shorter)):
        if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
            return table
    named = [title for title in shorter if title not in ("#", "n", *metrics)]
    rows = zip(*(shorter[title] for title in named), strict=True)
    settings = [
        " ".join(f"{name}={cell}" for name, cell in zip(named, row, strict=True) if cell) for row in rows
    ]
    ranks = [title for title in shorter if title in metrics][:1]  # without validation and test there is none
    return _table({"#": shorter["#"], "settings": settings, **{title: shorter[title] for title in ranks}})


def _table(columns: dict[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=title != "settings")
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        table.add_row(*(Text(shown(cell)) for cell in row), style="bold" if number == 0 else None)
    return table


def _markdown(columns: dict[str, list[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return [f"| {' | '.join(map(_plain, line))} |" for line in lines]


def _plain(text: str) -> str:
    """A text that Markdown takes for nothing but text: no cell's end, code, link or tag."""
    return re.sub(r"[|`<\\]|(?<=\])[(\[:]", lambda found: f"&#{ord(found[0])};", shown(text))


def _short(keys: list[str]) -> dict[str, str]:
    """lr for optimizer.lr, where no other key ends like it."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def _settings(board: Leaderboard, job: SweepJob, *more: str) -> str:
    """What a job has that others have not, as on the command line."""
    keys = [key for key in (*board.varying, *more) if key in job.overrides]
    return " ".join(f"{key}={_brief(job.overrides[key])}" for key in keys)


def _brief(value: str) -> str:
    """A value, its number rounded to four digits where it is a long one, and a fraction."""
    long = len(value) > 8 and re.fullmatch(r"[+-]?\d*(\.\d+(e[+-]?\d+)?|e[+-]?\d+)", value.lower())
    return f"{float(value):.4g}" if long else value


def title_of(metric: str) -> str:
    """val acc for val_accuracy."""
    split, _, name = metric.partition("_")
    return f"{split} {SHORT.get(name, name)}" if name else "time"


def _spread(metric: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    if metric == "seconds":
        return f"{spread.mean:.1f} s"
    form = ".3f" if metric.endswith(("accuracy", "map")) else ".4f" if spread.mean < 1000 else ".2e"
    return format(spread.mean, form) + ("" if spread.std is None else f" ± {spread.std:{form}}")
