"""`finetune predict`: a row for each picture, written while the next are computed."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

from finetune.atomic import part_of
from finetune.cells import cells
from finetune.data.dataset import Picture
from finetune.errors import Interrupted, RequestError, RunError
from finetune.features.extract import Form
from finetune.inference.forward import Answer, Predictor
from finetune.inference.metrics import probabilities
from finetune.output import failure
from finetune.report.terminal import say

Ranked = list[tuple[str, float]]
Write = Callable[[str, Ranked, str], object]


@dataclass
class Tally:
    """How many pictures have their row, how many of them cannot be read, and the first of these."""

    pictures: int = 0
    broken: int = 0
    first: str = ""
    started: float = field(default_factory=time.perf_counter)

    def tell(self, console: Console, form: Form, temperature: float) -> None:
        """One line on what was done and how."""
        seconds = time.perf_counter() - self.started
        text = "1 picture" if self.pictures == 1 else f"{self.pictures:,} pictures"
        text += f" in {seconds:.1f} s ({self.pictures / seconds:.3g}/s, {form})"
        text += f", {self.broken:,} of them cannot be read" if self.broken else ""
        text += f"; logits divided by {temperature:.3f}" if temperature != 1 else ""
        say(console, "predict", text)


def predict(
    predictor: Predictor,
    pictures: Iterable[Picture],
    out: Path | None,
    format: str,
    top: int,
    loss: str,
    temperature: float,
    advance: Callable[[int], None],
) -> Tally:
    """Write a row for each picture: the most likely classes, or why it cannot be read.

    out: None for stdout. format: `csv` or `jsonl`. advance: called with the number of rows written.

    Raises:
        RequestError: the file cannot be made.
        RunError: it cannot be written on, as on a full disk; or Interrupted. The rows so far are kept.
    """
    tally = Tally()
    with _opened(out, tally) as file:
        write = WRITERS[format](file, min(top, len(predictor.saved.names)))
        for answers in predictor(pictures):
            for answer, ranked in zip(
                answers, rank(answers, predictor.saved.names, top, loss, temperature), strict=True
            ):
                write(str(answer.picture), ranked, answer.reason)
                tally.pictures += 1
                if answer.reason:
                    tally.broken += 1
                    tally.first = tally.first or f"{answer.picture}: {answer.reason}"
            file.flush()
            advance(len(answers))
            if failure(file):  # whoever read has enough, as head has
                break
    return tally


def rank(
    answers: Sequence[Answer], names: Sequence[str], top: int, loss: str, temperature: float
) -> list[Ranked]:
    """The most likely classes of each picture with their probabilities; none where it cannot be read."""
    logits = [answer.logits for answer in answers if answer.logits is not None]
    if not logits:
        return [[] for _ in answers]
    together = torch.stack(logits)
    places = together.topk(min(top, len(names))).indices  # probabilities may be too near to 1 to differ
    values = probabilities(together, loss, temperature).gather(1, places)
    rows = iter(zip(values.tolist(), places.tolist(), strict=True))
    return [
        []
        if answer.logits is None
        else [(names[place], value) for value, place in zip(*next(rows), strict=True)]
        for answer in answers
    ]


def format_of(out: Path | None, asked: str | None) -> str:
    """The format asked for, or that of the file's extension; CSV on stdout.

    Raises:
        RequestError: neither says which, or the file is a folder.
    """
    if out and out.is_dir():
        raise RequestError(f"--out={out}: expected a file; this is a folder")
    endings = {"": "csv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    chosen = asked or endings.get("" if out is None else out.suffix.lower() or "none")
    if chosen not in WRITERS:
        what = f"--format={asked}" if asked else f"--out={out}"
        raise RequestError(f"{what}: expected csv or jsonl, as --format or by the extension of --out")
    return chosen


def _csv(file: TextIO, top: int) -> Write:
    rows = csv.writer(file, lineterminator="\n")
    numbers = ["", *(f"_{number}" for number in range(2, top + 1))]
    columns = [f"{name}{number}" for number in numbers for name in ("class", "probability")]
    rows.writerow(["path", *columns, "error"])

    def write(path: str, ranked: Ranked, reason: str) -> None:
        answers = [cell for name, value in ranked for cell in (name, f"{value:.6f}")]
        rows.writerow(cells([path, *(answers or [""] * len(columns)), reason]))

    return write


def _jsonl(file: TextIO, top: int) -> Write:
    def write(path: str, ranked: Ranked, reason: str) -> None:
        row: dict[str, Any] = {"path": path}
        if reason:
            row["error"] = reason
        else:
            row["predictions"] = [{"class": name, "probability": round(value, 6)} for name, value in ranked]
        file.write(f"{json.dumps(row, ensure_ascii=False)}\n")

    return write


WRITERS: dict[str, Callable[[TextIO, int], Write]] = {"csv": _csv, "jsonl": _jsonl}


@contextmanager
def _opened(out: Path | None, tally: Tally) -> Iterator[TextIO]:
    """Stdout, or a file beside the target that takes its place when all is written."""
    if out is None:
        # Names of any bytes, as UTF-8 like a file, whatever the terminal.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        yield sys.stdout
        return
    part = part_of(out)
    try:
        file = part.open("x", newline="", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise RequestError(f"--out={out}: cannot be written: {error.strerror}") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the first {tally.pictures:,} rows are in {part}", 130) from None
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written: {error.strerror}; the first {tally.pictures:,} rows are in {part}"
        ) from None
    except BaseException:
        part.unlink()
        raise
