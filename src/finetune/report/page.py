"""report.html: one run told on one page that needs nothing beside itself, made from the run's folder."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.atomic import write_atomically
from finetune.cells import read_table
from finetune.config.compose import as_typed
from finetune.config.schema import flat
from finetune.data.dataset import RawImage
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing
from finetune.report.advice import advise
from finetune.report.charts import confusion_chart, curve_chart, reliability_chart
from finetune.report.mistakes import Maps, images_named, mistakes, thumbnail
from finetune.report.predictions import Prediction, read_predictions
from finetune.report.templates import template
from finetune.report.terminal import fold_scores
from finetune.runs import folder as folders
from finetune.runs.settings import read_settings
from finetune.runs.summary import worse_by_temperature
from finetune.runs.sweeps import logdir
from finetune.training.intervals import wilson
from finetune.training.metrics import calibration_bins, calibration_error, measure_answers

FILE = "report.html"
MISTAKES = 12
MATRIX_CLASSES = 40  # more do not fit on a screen; then the matrix is of those most often confused:
CONFUSED = 20
EXAMPLES = 40  # classes with one
SPLITS = {"test": "test", "val": "validation"}


def write_report(
    folder: Path, summary: Mapping[str, Any], images: Sequence[RawImage], maps: Maps | None = None
) -> Path:
    """Write the report of a finished run, from its summary and what else is in its folder.

    images: the data set's, for those that are no files. maps: overlay images with what in them speaks for
    their answers; None leaves the maps out. RequestError: a file that it is made of has been changed.
    """
    folders.check_tables(folder, summary.get("files", {}))
    answers, folds = read_predictions(folder), summary.get("folds")
    split = next((split for split in SPLITS if any(one.split == split for one in answers)), None)
    result = None
    if split:
        answers = [one for one in answers if one.split == split]
        told = summary["preprocessing"]  # runs of older versions have neither
        known = {key: told[key] for key in ("brightness", "repair", "fit") if key in told}
        how = Preprocessing(**known)
        result = _result(answers, summary[split], summary)
        result |= {
            "split": SPLITS[split],
            **mistakes(result["wrong"][:MISTAKES], images, maps, how, folder=folder),
            "examples": _examples([row["name"] for row in result["table"]], answers, images, how),
        }
    overrides, solution, settings = summary.get("overrides"), summary.get("solution"), read_settings(folder)
    page = {
        "run": folder.name,
        "logdir": shlex.quote(str(logdir(folder))),
        "summary": summary,
        "data": Path(summary["data"]["name"]).name,
        "settings": flat(settings.model_dump()),
        "advice": advise(folder, summary, settings),
        "folder": shlex.quote(str(folder)),
        "command": None if overrides is None else shlex.join(["finetune", "train", *as_typed(overrides)]),
        "curves": _curves(folder / "metrics.csv", summary),
        "solution": solution,
        "path": _path(solution),
        "apart": _apart((summary["test"] or summary["val"] or {}).get("curves")),
        "learning": _learning(summary.get("curve")),
        **{key: summary.get(key) for key in ("refit", "phases")},  # older runs have neither, nor folds
        "folds": folds and fold_scores(folds),
        "result": result,
        "labels": _labels(summary),
        "skipped": read_table(folder / "skipped.csv"),
        "worse": worse_by_temperature(summary),
        "time": _time(summary),
    }
    target = folder / FILE
    write_atomically(target, template("page.html").render(page).encode("utf-8", "replace"))
    return target


def _result(
    answers: Sequence[Prediction], measured: Mapping[str, Any], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What the answers for one split are worth, of which the summary has these numbers."""
    classes = summary["classes"]
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places[one.label] for one in answers])
    predicted = torch.tensor([places.get(one.predicted, len(classes)) for one in answers])
    outputs = max(len(classes), int(predicted.max()) + 1)
    found = measure_answers(labels, predicted, classes, outputs)
    # The worst first, and last those of which there are no images.
    table = sorted(found["per_class"], key=lambda row: (row["recall"] is None, row["recall"], row["name"]))
    wrong = sorted((one for one in answers if not one.right), key=lambda one: -one.probability)
    intervals = measured.get("intervals", {})  # older runs have none
    commonest, count = Counter(one.label for one in answers).most_common(1)[0]
    return {
        **measured,
        "pictures": len(answers),
        "intervals": {"accuracy": wilson(1 - len(wrong) / len(answers), len(answers)), **intervals},
        "commonest": commonest,
        "chance": count / len(answers),
        "f1": measured.get("macro_f1", found["macro_f1"]),
        "table": table,
        "matrix": _matrix(np.array(found["confusion"]), classes),
        "confused": Counter((one.label, one.predicted) for one in wrong).most_common(5),
        "calibration": _calibration(answers, summary["calibration"]),
        "wrong": wrong,
    }


def _matrix(matrix: np.ndarray, classes: Sequence[str]) -> Any:
    """The confusion matrix, or the part of it where most is confused."""
    totals, rows = matrix.sum(1), len(classes)
    if rows <= MATRIX_CLASSES:
        return confusion_chart(matrix, classes, totals)
    wrong = totals + matrix[:, :rows].sum(0) - 2 * matrix.diagonal()
    most = np.sort(np.argsort(-wrong, kind="stable")[:CONFUSED])
    return confusion_chart(matrix[np.ix_(most, most)], [classes[one] for one in most], totals[most])


def _examples(
    names: Sequence[str], answers: Sequence[Prediction], images: Sequence[RawImage], how: Preprocessing
) -> dict[str, str | None]:
    """By class the image that is answered rightly with most confidence, where there is one."""
    best = {one.label: one for one in sorted(answers, key=lambda one: one.probability) if one.right}
    chosen = {name: best[name].picture for name in names[:EXAMPLES] if name in best}
    found = images_named([*chosen.values()], images)
    return {name: thumbnail(one, how) for name, one in zip(chosen, found, strict=True)}


def _calibration(answers: Sequence[Prediction], fitted: Mapping[str, Any] | None) -> dict[str, Any]:
    right = torch.tensor([one.right for one in answers])
    before = calibration_bins(torch.tensor([one.uncalibrated for one in answers]), right)
    after = calibration_bins(torch.tensor([one.probability for one in answers]), right)
    return {
        "temperature": fitted and fitted["temperature"],
        "fitted_on": fitted and fitted["fitted_on"],
        "before": calibration_error(before),
        "after": calibration_error(after),
        "diagram": reliability_chart({"before": before, "after": after} if fitted else {"before": before}),
    }


def _labels(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run came to where an image may have several labels; None elsewhere."""
    split = next((split for split in SPLITS if "per_label" in (summary[split] or {})), None)
    if split is None:
        return None
    table = [{"name": name, **numbers} for name, numbers in summary[split]["per_label"].items()]
    return {
        **summary[split],
        "split": SPLITS[split],
        "pictures": summary["data"][split],
        "table": sorted(table, key=lambda row: (row["average_precision"], row["name"])),
    }


def _apart(curves: Mapping[str, Sequence[float]] | None) -> list[tuple[str, Any]]:
    """The ROC, and precision over recall, of two classes or of all labels together."""
    pairs = {"ROC": ("false_positives", "recall"), "Precision over recall": ("recall", "precision")}
    return [
        (what, curve_chart(what, {"val": [*zip(curves[x], curves[y], strict=True)]}, None, 1.0))
        for what, (x, y) in pairs.items()
        if curves
    ]


def _path(solution: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Log-loss and accuracy over the strengths that were tried, on a logarithmic scale."""
    if not (solution and len(path := solution["path"]) > 1):
        return []
    chosen, drawn = math.log10(solution["weight_decay"]), []
    for what, top in (("log_loss", None), ("accuracy", 1.0)):
        points = sorted((math.log10(point["strength"]), point[what]) for point in path)
        name = what.replace("_", "-")
        drawn.append((name, curve_chart(f"{name} over strengths", {"val": points}, chosen, top)))
    return drawn


def _curves(file: Path, summary: Mapping[str, Any]) -> list[tuple[str, Any, list[str]]]:
    """Loss and accuracy over epochs, drawn, and the sides that have a line."""
    rows, drawn = read_table(file), []
    best = None if summary.get("solution") and not summary.get("phases") else summary["best_epoch"]
    for what, top in (("loss", None), ("accuracy", 1.0)):
        splits = [split for split in ("train", "val") if rows and rows[0].get(f"{what}/{split}")]
        try:
            series = {
                split: [(float(row["epoch"]), float(row[f"{what}/{split}"])) for row in rows]
                for split in splits
            }
        except (KeyError, ValueError) as error:
            raise RequestError(f"{file}: expected what the run wrote; damaged: {error}") from None
        if series:
            drawn.append((what, curve_chart(f"{what} over epochs", series, best, top), splits))
    return drawn


def _learning(curve: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What `finetune curve` found, drawn with what twice the images would give."""
    if curve is None:
        return None
    points, twice = [(one["images"], one["value"]) for one in curve["points"]], curve["twice"]
    low, high, value = ((twice["images"], twice[end]) for end in ("low", "high", "value"))
    series = {"before": [points[-1], low, high, points[-1]], "train": [points[-1], value], "val": points}
    return {**curve, "drawing": curve_chart("accuracy over images", series, None, 1.0)}


def _time(summary: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Where the seconds went, in the order of the run, and a colour for each."""
    timing, features = summary["timing"], summary["features"]
    reading = features["seconds"] if features else 0.0
    return [
        ("reading and preparing", max(timing["preparing"] - reading, 0.0), "grey"),
        ("the frozen part, once", reading, "orange"),
        ("training and testing", timing["training"], "blue"),
    ]
