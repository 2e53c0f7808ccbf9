"""What `finetune evaluate` shows and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.atomic import write_json
from finetune.errors import RequestError, brief, shown
from finetune.inference.evaluate import Chosen, Evaluation
from finetune.inference.metrics import Measures
from finetune.inference.several import SeveralMeasures
from finetune.report.terminal import say

MOST = 40  # classes on the terminal, the worst ones where there are more
MATRIX_UP_TO = 15  # classes; beyond that the most frequent confusions say more
MEASURES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "map": "mean AP",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
}


def show(console: Console, chosen: Chosen, evaluation: Evaluation, temperature: float) -> None:
    """What was measured on what, the classes that do not fit, a table per class and the confusions."""
    measures, data = evaluation.measures, chosen.dataset
    which = "all pictures" if chosen.side == "all" else f"{chosen.side} split"
    say(console, "data", f"{data.name}, {which}: {measures.pictures:,} pictures")
    for line in misfits(chosen, evaluation):
        say(console, "warning", line)
    say(console, "scaling", f"logits divided by {temperature:.3f}" if temperature != 1 else "none")
    console.print()
    for name, title in MEASURES.items():
        value = getattr(measures, name, None)
        if value is not None:
            console.print(f"{title:<18} {value:.4f}", highlight=False)
    console.print()
    console.print(_per_class(measures))
    if (more := len(measures.per_class) - MOST) > 0:
        say(console, "more", f"{more:,} classes with a higher F1, or without pictures; --out writes all")
    if isinstance(measures, SeveralMeasures):
        return
    console.print()
    if len(measures.per_class) <= MATRIX_UP_TO:
        console.print("true classes by the numbers of the predicted ones")
        console.print(_matrix(measures))
    else:
        console.print(_confusions(measures))


def misfits(chosen: Chosen, evaluation: Evaluation) -> list[str]:
    """What of data and run does not fit together, a line each."""
    lines = []
    if not chosen.own and chosen.side != "all":
        lines.append(
            "the data are not those the run was trained on: pictures measured here may have been trained on"
        )
    if chosen.unknown:
        named = [f"{name} ({count:,})" for name, count in chosen.unknown.items()]
        what = "left out" + " with their pictures" * (chosen.labels.ndim == 1)
        lines.append(f"classes that the run does not know, {what}: {brief(named)}")
    if missing := without_pictures(evaluation.measures):
        lines.append(f"classes of the run without pictures, left out of the means: {brief(missing)}")
    if evaluation.broken:
        paths = [f"{one.path} ({one.reason})" for one in evaluation.broken]
        asked = len(chosen.rows)
        lines.append(f"{len(paths)} of {asked:,} pictures cannot be read and are left out: {brief(paths, 2)}")
    return lines


def without_pictures(measures: Measures | SeveralMeasures) -> list[str]:
    """The classes that nothing is known of."""
    return [row.name for row in measures.per_class if not row.pictures]


def check(out: Path | None) -> None:
    """Raise RequestError where `--out` lies in no folder, or is one; before anything is computed."""
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise RequestError(f"--out={out}: expected a file in a folder that exists")


def write(out: Path, run: Path, chosen: Chosen, evaluation: Evaluation, temperature: float) -> None:
    """The same and the bins of confidence as JSON."""
    found = {
        "run": str(run),
        "data": {"name": chosen.dataset.name, "split": chosen.side, "as_trained": chosen.own},
        "temperature": temperature,
        "unknown_classes": chosen.unknown,
        "classes_without_pictures": without_pictures(evaluation.measures),
        "skipped": [{"path": one.path, "reason": one.reason} for one in evaluation.broken],
        **evaluation.measures.to_json(),
    }
    write_json(out, found)


def _per_class(measures: Measures | SeveralMeasures) -> Table:
    table = Table("class", box=None, pad_edge=False, header_style="bold")
    several = isinstance(measures, SeveralMeasures)
    columns = {"average_precision": "AP"} if several else {"precision": "precision", "recall": "recall"}
    columns |= {"f1": "F1"}
    for title in ("pictures", *columns.values()):
        table.add_column(title, justify="right")
    rows = [*measures.per_class]
    if len(rows) > MOST:
        rows = sorted(rows, key=lambda row: 2 if row.f1 is None else row.f1)[:MOST]
    for row in rows:
        values = (getattr(row, name) for name in columns)
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        table.add_row(Text(shown(row.name)), f"{row.pictures:,}", *cells)
    return table


def _matrix(measures: Measures) -> Table:
    """Columns have the numbers of the rows: names would not fit."""
    names, columns = [row.name for row in measures.per_class], measures.confusion.shape[1]
    table = Table("", "true", box=None, pad_edge=False, header_style="bold")
    for column in range(columns):
        table.add_column(str(column + 1) if column < len(names) else "other", justify="right")
    for i, name in enumerate(names):
        cells = [
            Text(str(count) if count else "·", style="bold" if i == j else "" if count else "dim")
            for j, count in enumerate(measures.confusion[i].tolist())
        ]
        table.add_row(Text(str(i + 1), justify="right"), Text(shown(name)), *cells)
    return table


def _confusions(measures: Measures, most: int = 10) -> Table:
    names = [*(row.name for row in measures.per_class), "no class"]
    wrong = measures.confusion.copy()
    np.fill_diagonal(wrong, 0)
    table = Table("most often confused", "with", box=None, pad_edge=False, header_style="bold")
    table.add_column("pictures", justify="right")
    for place in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column]:
            table.add_row(Text(shown(names[row])), Text(shown(names[column])), f"{wrong[row, column]:,}")
    return table
