"""What `finetune evaluate` shows and writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.errors import brief, counted, shown
from finetune.evaluation.evaluate import PARTS, Chosen, Evaluation
from finetune.report.terminal import scores
from finetune.say import columns, say

MOST = 40  # classes on the terminal, the worst ones where there are more
MATRIX_UP_TO = 15  # classes; beyond that the most frequent confusions say more
CONFUSIONS = 10
MEASURES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "map": "mean AP",
    "roc_auc": "ROC AUC",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
}
COLUMNS = {
    "average_precision": "AP",
    "roc_auc": "AUC",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "threshold": "threshold",
}


def show_evaluation(console: Console, chosen: Chosen, evaluation: Evaluation, scaling: str) -> None:
    """What was measured on what, the classes that do not fit, a table per class and the confusions."""
    measures, data = evaluation.measures, chosen.dataset
    which = "all images" if chosen.split == "all" else f"{chosen.split} split"
    say(console, "data", f"{data.name}, {which}: {counted(measures['pictures'], 'image')}")
    for line in misfits(chosen, evaluation):
        say(console, "warning", line)
    say(console, "scaling", scaling)
    console.print()
    console.print(f"{'':<27}95 % interval", highlight=False)
    for name, title in MEASURES.items():
        if (value := measures.get(name)) is not None:
            console.print(f"{title:<18} {value:.4f}{_interval(measures, name)}", highlight=False)
    if found := measures.get("at_thresholds"):
        console.print(f"by the thresholds  {scores(found)}", highlight=False)
    console.print()
    for part, found in evaluation.parts.items():
        say(console, part, f"{PARTS[part]}, {counted(found['pictures'], 'image')}: {scores(found)}")
    rows = measures["per_class"]
    console.print(_per_class(rows))
    if (more := len(rows) - MOST) > 0:
        say(console, "more", f"{counted(more, 'class')} with a higher F1, or no images; --out writes all")
    if "confusion" not in measures:
        return
    console.print()
    names, matrix = [shown(row["name"]) for row in rows], np.array(measures["confusion"])
    if len(names) <= MATRIX_UP_TO:
        console.print("true classes by the numbers of the predicted ones")
        console.print(_confusion_matrix(matrix, names))
    else:
        console.print(_confusions(matrix, names))


def misfits(chosen: Chosen, evaluation: Evaluation) -> list[str]:
    lines, asked = [], counted(len(chosen.rows), "image")
    if chosen.parts is not None and (learned := int((chosen.parts == "train").sum())):
        tested = chosen.own and len(chosen.dataset.split["test"])
        others = "; --split=test measures on others" if tested else ""
        lines.append(f"the run has learned from {learned:,} of these {asked}{others}")
    if chosen.parts is None and chosen.split != "all":
        lines.append(
            "the data are not those the run was trained on: images measured here may have been trained on"
        )
    if chosen.unknown:
        named = [f"{name} ({count:,})" for name, count in chosen.unknown.items()]
        what = "left out" if chosen.labels.ndim == 2 else "left out with their images"
        lines.append(f"classes that the run does not know, {what}: {brief(named)}")
    if missing := evaluation.without_images:
        lines.append(f"classes of the run without images, left out of the means: {brief(missing)}")
    if evaluation.broken:
        paths = [f"{one.path} ({one.reason})" for one in evaluation.broken]
        lines.append(f"{len(paths)} of {asked} cannot be read and are left out: {brief(paths, 2)}")
    return lines


def evaluation_json(chosen: Chosen, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "data": {"name": chosen.dataset.name, "split": chosen.split, "as_trained": chosen.own},
        "unknown_classes": chosen.unknown,
        "classes_without_pictures": evaluation.without_images,
        "skipped": [{"path": one.path, "reason": one.reason} for one in evaluation.broken],
        **evaluation.measures,
        "parts": evaluation.parts,
    }


def _interval(measures: dict[str, Any], name: str) -> str:
    return "  {:.3f} to {:.3f}".format(*ends) if (ends := measures["intervals"].get(name)) else ""


def _per_class(rows: list[dict[str, Any]]) -> Table:
    measured = {name: title for name, title in COLUMNS.items() if name in rows[0]}
    titles = ("images", *measured.values())
    table = columns("class", *titles, numbers=titles)
    if len(rows) > MOST:
        rows = sorted(rows, key=lambda row: 2 if row["f1"] is None else row["f1"])[:MOST]
    for row in rows:
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in measured)
        table.add_row(Text(shown(row["name"])), f"{row['pictures']:,}", *cells)
    return table


def _confusion_matrix(matrix: np.ndarray, names: list[str]) -> Table:
    """Columns have the numbers of the rows: names would not fit."""
    numbers = [str(place + 1) if place < len(names) else "other" for place in range(matrix.shape[1])]
    table = columns("", "true", *numbers, numbers=numbers)
    for i, name in enumerate(names):
        cells = [Text(str(count)) if count else Text("·", style="dim") for count in matrix[i]]
        cells[i].stylize("bold")
        table.add_row(Text(str(i + 1), justify="right"), Text(name), *cells)
    return table


def _confusions(matrix: np.ndarray, names: list[str]) -> Table:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    names = [*names, "no class"]
    table = columns("most often confused", "with", "images", numbers=("images",))
    for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        row, column = np.unravel_index(place, wrong.shape)
        if wrong[row, column]:
            table.add_row(Text(names[row]), Text(names[column]), f"{wrong[row, column]:,}")
    return table
