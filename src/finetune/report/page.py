"""report.html: one run told on one page that needs nothing beside itself, made from the run's folder."""

from __future__ import annotations

import csv
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from finetune.atomic import read_json, write_atomically
from finetune.cells import plain
from finetune.data.dataset import Picture
from finetune.report import charts, predictions
from finetune.report import folder as folders
from finetune.report.folder import logdir
from finetune.report.mistakes import Maps, mistakes
from finetune.report.predictions import Prediction
from finetune.report.tensorboard import flat
from finetune.sweep.jobs import overrides_of
from finetune.training.metrics import calibration_bins, calibration_error, measure_answers

FILE = "report.html"
MISTAKES = 12
MATRIX_CLASSES = 40  # more do not fit on a screen
SIDES = {"test": "test", "val": "validation"}


def of_sweep(folder: Path) -> bool:
    """Whether a run's folder is a job's of a sweep."""
    return (folder.parent / "multirun.yaml").exists()


def write(
    folder: Path, summary: Mapping[str, Any], pictures: Sequence[Picture], maps: Maps | None = None
) -> Path:
    """Write the report of a finished run, from its summary and what else is in its folder.

    pictures: the data set's, for those that are no files. maps: light pictures by what in them speaks for
    their answers; None leaves the maps out.

    Raises:
        RequestError: a file that it is made of has been changed.
        RunError: the file cannot be written.
    """
    folders.check(folder, summary.get("files", {}))
    settings = read_json(folder / "settings.json", "the settings of a run")
    answers = predictions.read(folder)
    side = next((side for side in SIDES if any(one.split == side for one in answers)), None)
    page = {
        "run": folder.name,
        "logdir": shlex.quote(str(logdir(folder))),
        "summary": summary,
        "data": Path(summary["data"]["name"]).name,
        "settings": flat(settings),
        "command": _command(folder, summary.get("overrides")),
        "curves": _curves(folder / "metrics.csv", summary["best_epoch"]),
        "result": side
        and _result([one for one in answers if one.split == side], side, summary, pictures, maps),
        "labels": _labels(summary),
        "skipped": _skipped(folder / "skipped.csv"),
        "time": _time(summary),
        "saved": _saved(summary),
    }
    target = folder / FILE
    write_atomically(target, _template().render(page).encode("utf-8", "replace"))
    return target


@cache
def _template() -> Template:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=percent, duration=duration)
    return templates.get_template("page.html")


def percent(share: float | None, digits: int = 1) -> str:
    """0.6404 as 64.0 %; a dash for None."""
    return "-" if share is None else f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted: Wilson 1927."""
    z = 1.96
    share, scale = right / total, 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _result(
    answers: Sequence[Prediction],
    side: str,
    summary: Mapping[str, Any],
    pictures: Sequence[Picture],
    maps: Maps | None,
) -> dict[str, Any]:
    """What the answers for one side of the split are worth."""
    classes = summary["classes"]
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places[one.label] for one in answers])
    predicted = torch.tensor([places.get(one.predicted, len(classes)) for one in answers])
    outputs = max(len(classes), int(predicted.max()) + 1)
    measured = measure_answers(labels, predicted, classes, outputs)
    wrong = sorted((one for one in answers if not one.right), key=lambda one: -one.probability)
    commonest, count = Counter(one.label for one in answers).most_common(1)[0]
    return {
        "side": SIDES[side],
        "pictures": len(answers),
        "accuracy": measured["accuracy"],
        "interval": interval(len(answers) - len(wrong), len(answers)),
        "commonest": commonest,
        "chance": count / len(answers),
        "loss": summary[side]["loss"],
        "balanced": measured["balanced_accuracy"],
        "f1": measured["macro_f1"],
        "table": sorted(measured["per_class"], key=_worst_first),
        "matrix": _drawn(np.array(measured["confusion"]), classes),
        "confused": Counter((one.label, one.predicted) for one in wrong).most_common(5),
        "calibration": _calibration(answers, summary),
        "wrong": len(wrong),
        "mistakes": mistakes(wrong[:MISTAKES], pictures, maps),
    }


def _drawn(matrix: np.ndarray, classes: Sequence[str]) -> Markup | None:
    return charts.confusion_matrix(matrix, classes) if len(classes) <= MATRIX_CLASSES else None


def _worst_first(row: Mapping[str, Any]) -> tuple[float, str]:
    return (2.0 if row["recall"] is None else row["recall"], row["name"])


def _calibration(answers: Sequence[Prediction], summary: Mapping[str, Any]) -> dict[str, Any]:
    right = torch.tensor([one.right for one in answers])
    raw = calibration_bins(torch.tensor([one.uncalibrated for one in answers]), right)
    fitted = calibration_bins(torch.tensor([one.probability for one in answers]), right)
    found = summary["calibration"]
    return {
        "temperature": found and found["temperature"],
        "fitted_on": found and found["fitted_on"],
        "before": calibration_error(raw),
        "after": calibration_error(fitted),
        "diagram": charts.reliability({"before": raw, "after": fitted} if found else {"before": raw}),
    }


def _labels(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the run came to where a picture may have several labels; None elsewhere."""
    side = next((side for side in SIDES if "per_label" in (summary[side] or {})), None)
    if side is None:
        return None
    table = [{"name": name, **numbers} for name, numbers in summary[side]["per_label"].items()]
    return {
        **summary[side],
        "side": SIDES[side],
        "pictures": summary["data"][side],
        "table": sorted(table, key=lambda row: (row["average_precision"], row["name"])),
    }


def _curves(file: Path, best: int) -> list[tuple[str, Any]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    drawn = []
    for what, top in (("loss", None), ("accuracy", 1.0)):
        series = {
            side: [(float(row["epoch"]), float(row[f"{what}/{side}"])) for row in rows]
            for side in ("train", "val")
            if rows and rows[0].get(f"{what}/{side}")
        }
        if series:
            drawn.append((what, charts.curves(f"{what} over epochs", series, best, top)))
    return drawn


def _skipped(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return [*map(plain, csv.DictReader(opened))]


def _time(summary: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Where the seconds went, in the order of the run, and a colour for each."""
    timing, features = summary["timing"], summary["features"]
    reading = features["seconds"] if features else 0.0
    return [
        ("reading and preparing", max(timing["preparing"] - reading, 0.0), "grey"),
        ("the frozen part, once", reading, "orange"),
        ("training and testing", timing["training"], "blue"),
    ]


def _saved(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What running the frozen part once saved; `seconds` only where its speed was measured in this run."""
    features, data = summary["features"], summary["data"]
    if not features:
        return None
    passes = summary["epochs"] * (data["train"] + data["val"]) + data["val"] + data["test"]
    computed = features["computed"]
    each = features["seconds"] / computed if computed else None
    return {"passes": passes, "seconds": each and each * (passes - computed)}


def _command(folder: Path, overrides: Sequence[str] | None) -> str | None:
    """The command line that the run was asked for with; None where it was not by one."""
    if overrides is None and (folder / ".hydra" / "overrides.yaml").exists():
        overrides = overrides_of(folder)  # an older version did not keep them in the summary
    return None if overrides is None else shlex.join(["finetune", "train", *overrides])
