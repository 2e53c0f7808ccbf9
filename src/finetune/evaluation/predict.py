"""`finetune predict`: a row for each image, written while the next are computed."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from finetune.atomic import check_out, part_of
from finetune.cells import cells
from finetune.data.dataset import RawImage
from finetune.errors import Interrupted, RequestError, RunError, counted
from finetune.evaluation.familiar import Details, cells_of, numbered
from finetune.evaluation.forward import Predictor
from finetune.evaluation.options import PredictOptions
from finetune.evaluation.paths import find_images
from finetune.output import failure
from finetune.runs.open import open_run
from finetune.say import Screen, progress, say

NONE = [("none of these", None)]
Write = Callable[[str, Sequence[tuple[str, float | None]], str, dict[str, Any]], object]


@dataclass
class Tally:
    """How many images have their row, how many of them cannot be read, and the first of these."""

    images: int = 0
    broken: int = 0
    rejected: int = 0
    first: str = ""
    started: float = field(default_factory=time.perf_counter)

    def check(self) -> None:
        """Raise RunError where images could not be read."""
        if self.broken:
            told = f"{self.broken:,} of {counted(self.images, 'image')} cannot be read"
            raise RunError(f"--strict: {told}; the first is {self.first}")

    def tell(self, console: Console, predictor: Predictor) -> None:
        """One line on what was done and how."""
        form, temperature, repaired = predictor.form, predictor.temperature, len(predictor.repaired)
        seconds = time.perf_counter() - self.started
        text = f"{counted(self.images, 'image')} in {seconds:.1f} s ({self.images / seconds:.3g}/s, {form})"
        text += f", {self.broken:,} of them cannot be read" if self.broken else ""
        text += f", {self.rejected:,} are {NONE[0][0]}" if self.rejected else ""
        text += f", {repaired:,} are cut off and shown as far as they go" if repaired else ""
        text += f"; logits divided by {temperature:.3f}" if temperature != 1 else ""
        say(console, "predict", text)


def predict_paths(options: PredictOptions) -> None:
    """Classify the images that `paths` name, to stdout or a file."""
    if options.out:
        check_out("--out=", options.out)
    format, saved = format_of(options.out, options.format), open_run(options.run)
    if options.out:
        _refuse_anothers(options.out, format)
    images = find_images(options.paths, sys.stdin, saved.settings.data)
    predictor = Predictor(saved, saved.settings.precision, raw=options.raw)
    details = Details(predictor, options.neighbours, options.reject, options.coverage)
    console = Screen(stderr=True)
    images.tell(console)
    if not options.out and sys.stdout.isatty():  # rows and a bar on one terminal would be in each other's way
        bar: AbstractContextManager[Callable[[int], None]] = nullcontext(lambda _: None)
    else:
        bar = progress(console, "predict", images.total)
    with bar as advance:
        tally = predict_images(details, images, options.out, format=format, top=options.top, advance=advance)
    tally.tell(console, predictor)
    if options.out:
        say(console, "written", str(options.out))
    if options.strict:
        tally.check()


def predict_images(
    details: Details,
    images: Iterable[RawImage],
    out: Path | None,
    *,
    format: str,
    top: int,
    advance: Callable[[int], None],
) -> Tally:
    """Write a row for each image: the likeliest classes and what else is asked for, or why it cannot be read.

    out: None for stdout. format: `csv` or `jsonl`. advance: called with the number of rows written.
    RunError: the file cannot be written on, as on a full disk; or Interrupted. The rows so far are kept.
    """
    tally, predictor = Tally(), details.predictor
    with _opened(out, tally) as file:
        write = WRITERS[format](file, min(top, len(predictor.saved.names)), details.columns)
        for answers in predictor(images):
            for answer in answers:
                more = details(answer)
                rejected = more.get("familiar", 1) < details.reject
                ranked = NONE if rejected else predictor.rank(answer, top)
                write(str(answer.image), ranked, answer.reason, more)
                tally.images += 1
                tally.rejected += rejected
                if answer.reason:
                    tally.broken += 1
                    tally.first = tally.first or f"{answer.image}: {answer.reason}"
            file.flush()
            advance(len(answers))
            if failure(file):  # whoever read has enough, as head has
                break
    return tally


def format_of(out: Path | None, asked: str | None) -> str:
    """The format asked for, or that of the file's extension; CSV on stdout.

    RequestError: neither says which.
    """
    endings = {"": "csv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    chosen = asked or endings.get("" if out is None else out.suffix.lower() or "none")
    if chosen not in WRITERS:
        what = f"--format={asked}" if asked else f"--out={out}"
        raise RequestError(f"{what}: expected csv or jsonl, as --format or by the extension of --out")
    return chosen


def _refuse_anothers(out: Path, format: str) -> None:
    """Raise RequestError where a file begins otherwise than ours do: it may be the user's own."""
    begins = {"csv": b"path,class,probability", "jsonl": b'{"path": "'}[format]
    if out.is_file() and not out.is_symlink():
        with out.open("rb") as file:
            content = file.read(len(begins))
        if content and content != begins:
            raise RequestError(f"--out={out}: expected a new file, or one of predict's; this is another")


def _csv(file: TextIO, top: int, more: Sequence[str]) -> Write:
    rows = csv.writer(file, lineterminator="\n")
    columns = ["path", *numbered(("class", "probability"), top), "error", *more]
    rows.writerow(columns)

    def write(path: str, ranked: Any, reason: str, more: dict[str, Any]) -> None:
        answers = [cell for name, value in ranked for cell in (name, "" if value is None else f"{value:.6f}")]
        answers += [""] * (2 * top - len(answers))
        row = [path, *answers, reason, *cells_of(more)]
        rows.writerow(cells(row + [""] * (len(columns) - len(row))))

    return write


def _jsonl(file: TextIO, top: int, more: Sequence[str]) -> Write:
    def write(path: str, ranked: Any, reason: str, more: dict[str, Any]) -> None:
        row: dict[str, Any] = {"path": path}
        if reason:
            row["error"] = reason
        else:
            row["predictions"] = [
                {"class": name, "probability": value and round(value, 6)} for name, value in ranked
            ]
            row |= more
        line = json.dumps(row, ensure_ascii=False)  # a name that is no UTF-8 becomes \udcf6, as JSON has it
        file.write(f"{line.encode('utf-8', 'backslashreplace').decode()}\n")

    return write


WRITERS: dict[str, Callable[[TextIO, int, Sequence[str]], Write]] = {"csv": _csv, "jsonl": _jsonl}


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
        with part.open("x", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except (KeyboardInterrupt, OSError) as error:
        kept = f"; in {part}: the first {counted(tally.images, 'row')}" if tally.images else ""
        if not kept:
            part.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted{kept}", 130) from None
        raise RunError(f"{out}: cannot be written: {error.strerror}{kept}") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
