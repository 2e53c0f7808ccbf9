"""A leaderboard for the terminal, as leaderboard.csv and as leaderboard.md."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.atomic import write_atomically
from finetune.cells import cells
from finetune.errors import shown
from finetune.runs.sweeps import Job, ranges
from finetune.say import say
from finetune.sweep.leaderboard import Leaderboard, Spread
from finetune.training.best import NAMES

NOTE = "Ranked by validation {}, ties by the lower validation loss; the test split chooses nothing."
UNRANKED = "Not ranked: there are no images to validate with, and the test split chooses nothing."
SHORT = {"accuracy": "acc", "map": "mAP"}
# What a narrow terminal does without, first to go first; the files have all of it.
SPARED = ("time", "jobs", "test loss", "val loss")
MOST = 30  # rows on the terminal
WORDS = {"interrupted": "stopped"}  # at most eight letters


def write(board: Leaderboard) -> None:
    """Write leaderboard.csv and leaderboard.md into the sweep's folder.

    Raises:
        RunError: they cannot be written.
    """
    for name, text in (("leaderboard.csv", as_csv(board)), ("leaderboard.md", as_markdown(board))):
        write_atomically(board.sweep / name, text.encode("utf-8", "surrogateescape"))


def as_csv(board: Leaderboard) -> str:
    """A line for each set of settings, then one for each job without a result; exact numbers, seconds."""
    columns = [name for metric in board.metrics for name in (metric, f"{metric}_std")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["rank", *cells(board.varying), "n", *columns, "best_run", "jobs", "status", "reason"])
    for rank, row in enumerate(board.rows, 1):
        spreads = [row.spread(metric) for metric in board.metrics]
        numbers = [n for one in spreads for n in ((one.mean, one.std) if one else (None, None))]
        jobs = " ".join(board.name(job) for job in row.jobs)
        settings = row.settings.values()
        table.writerow(
            cells([rank, *settings, len(row.jobs), *numbers, row.best.folder, jobs, "finished", ""])
        )
    for job in board.others:
        own = [job.overrides.get(key) for key in board.varying]
        blank = [None] * len(columns)
        table.writerow(cells([None, *own, None, *blank, None, board.name(job), job.status, job.reason]))
    return text.getvalue()


def as_markdown(board: Leaderboard) -> str:
    """The same for people."""
    lines = [f"# {_plain(str(board.sweep))}", ""]
    if board.rows:
        best = board.rows[0].best
        note = NOTE.format(" or ".join(NAMES[name] for name in board.deciding)) if best.val else UNRANKED
        lines += [note, "", *_markdown(_columns(board)), ""]
        lines += ["Best run: `{}`".format(shown(str(best.folder)).replace("`", "'")), ""] if best.val else []
    if board.others:
        others = {
            "job": [board.name(job) for job in board.others],
            "settings": [_settings(board, job, "seed") for job in board.others],
            "status": [job.status for job in board.others],
            "reason": [job.reason for job in board.others],
        }
        lines += [*_markdown(others), ""]
    return "\n".join(lines)


def show(board: Leaderboard, console: Console) -> None:
    """The table as far as the terminal is wide, the best run's folder, and what has no result."""
    console.print()
    if board.rows:
        columns = {title: cells[:MOST] for title, cells in _columns(board).items()}
        console.print(_fitting(columns, [_title(metric) for metric in board.metrics], console))
        if len(board.rows) > MOST:
            say(console, "more", f"{len(board.rows) - MOST} rows below these")
        best = board.rows[0]
        seeds = f"the best of its {len(best.jobs)} seeds" if len(best.jobs) > 1 else ""
        told = ", ".join(filter(None, (_settings(board, best.best), seeds, "by validation")))
        say(console, *(("best", f"{best.best.folder}: {told}") if best.best.val else ("note", UNRANKED)))
    ended = [job for job in board.others if job.status != "unfinished"]
    for job in ended[:MOST]:
        settings = _settings(board, job, "seed")
        named = f"job {board.name(job)}" + (f" ({settings})" if settings else "")
        say(console, WORDS.get(job.status, job.status), f"{named}: {job.reason}")
    if len(ended) > MOST:
        say(console, "more", f"{len(ended) - MOST} jobs without a result, as the table has them")
    if waiting := [board.name(job) for job in board.others if job.status == "unfinished"]:
        jobs = "1 job has" if len(waiting) == 1 else f"{len(waiting)} jobs have"
        say(console, "open", f"{jobs} not ended: {ranges(waiting)}")
    say(console, "table", f"{board.sweep}/leaderboard.csv and leaderboard.md")


def _columns(board: Leaderboard) -> dict[str, list[str]]:
    """The cells under each title; a metric that no job has gets no column."""
    rows = board.rows
    columns = {"#": [str(rank) for rank in range(1, len(rows) + 1)]}
    for key, title in _short(board.varying).items():
        columns[title] = [_brief(row.settings[key]) for row in rows]
    if any(len(row.jobs) > 1 for row in rows):
        columns["n"] = [str(len(row.jobs)) for row in rows]
    for metric in board.metrics:
        cells = [_spread(metric, row.spread(metric)) for row in rows]
        if any(cells):
            columns[_title(metric)] = cells
    columns["jobs"] = [ranges(board.name(job) for job in row.jobs) for row in rows]
    return columns


def _fitting(columns: dict[str, list[str]], metrics: list[str], console: Console) -> Table:
    """The widest table that the terminal has room for."""
    anywhere = console.options.update(max_width=10_000)
    measured = [title for title in columns if title in ("n", *metrics, "jobs")]
    for spared in range(len(SPARED) + 1):
        whole = _table({title: cells for title, cells in columns.items() if title not in SPARED[:spared]})
        if console.measure(whole, options=anywhere).maximum <= console.width:
            return whole
    # Many settings, or long ones: all of them in one column that takes as many lines as it needs.
    named = [title for title in columns if title not in ("#", *measured)]
    rows = zip(*(columns[title] for title in named), strict=True)
    settings = [
        " ".join(f"{title}={cell}" for title, cell in zip(named, row, strict=True) if cell) for row in rows
    ]
    longest = [max(text.split(), key=len, default="") for text in settings]
    kept = [title for title in measured if title not in SPARED]

    def table(texts: list[str]) -> Table:
        return _table({"#": columns["#"], "settings": texts, **{title: columns[title] for title in kept}})

    while len(kept) > 1 and console.measure(table(longest), options=anywhere).maximum > console.width:
        kept.remove("n" if kept[:-1] == ["n"] else kept[-1])
    return table(settings)


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


def _settings(board: Leaderboard, job: Job, *more: str) -> str:
    """What a job has that others have not, as on the command line."""
    keys = [key for key in (*board.varying, *more) if key in job.overrides]
    return " ".join(f"{key}={_brief(job.overrides[key])}" for key in keys)


def _brief(value: str) -> str:
    """A value, its number rounded to four digits where it is a long one."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 and not value.isdigit() else value
    except ValueError:
        return value


def _title(metric: str) -> str:
    """val acc for val_accuracy."""
    side, _, name = metric.partition("_")
    return f"{side} {SHORT.get(name, name)}" if name else "time"


def _spread(metric: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    if metric == "seconds":
        return f"{spread.mean:.1f} s"
    form = ".3f" if metric.endswith(("accuracy", "map")) else ".4f" if spread.mean < 1000 else ".2e"
    return format(spread.mean, form) + ("" if spread.std is None else f" ± {spread.std:{form}}")
