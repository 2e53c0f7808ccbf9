"""A sweep's report.html."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import fmean

from finetune.atomic import write_atomically
from finetune.report.templates import template
from finetune.sweep import tables
from finetune.sweep.leaderboard import Leaderboard


def write_page(board: Leaderboard) -> Path:
    """Write report.html into the sweep's folder: the leaderboard, and what the settings that vary came to."""
    shown = {
        "Leaderboard": tables.columns_of(board) if board.rows else {},
        "What mattered": what_mattered(board),
        "Without a result": tables.others_of(board) if board.others else {},
    }
    lines = [tables.ranking(board), *tables.notes_of(board)] if board.rows else []
    about = {"sweep": board.sweep, "folder": shlex.quote(str(board.sweep)), "lines": lines, "tables": shown}
    page = template("sweep.html").render(zip=zip, **about)
    write_atomically(target := board.sweep / "report.html", page.encode("utf-8", "replace"))
    return target


def what_mattered(board: Leaderboard) -> dict[str, list[str]]:
    """By column each value of what varies and the mean of its rows in validation, what differs most first."""
    found, metric = [], f"val_{board.deciding[0]}"
    for key in board.varying:
        scores: dict[str, list[float]] = {}
        for row in board.rows:
            if one := row.spread(metric):
                scores.setdefault(row.settings[key], []).append(one.mean)
        means = {value: fmean(each) for value, each in scores.items()}
        rows = [(key, value, f"{mean:.3f}", str(len(scores[value]))) for value, mean in means.items()]
        if len(rows) > 1:
            found.append((max(means.values()) - min(means.values()), rows))
    cells = [row for _, rows in sorted(found, key=lambda one: -one[0]) for row in rows]
    titles = ("setting", "value", f"mean {tables.title_of(metric)}", "rows")
    return {title: [row[place] for row in cells] for place, title in enumerate(titles)} if cells else {}
