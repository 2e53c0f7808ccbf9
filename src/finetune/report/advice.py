"""What to try next: rules over what a run measured, in the order of what following them gained."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from finetune.cells import read_table
from finetune.choices.given import PLUGINS, is_given
from finetune.choices.losses import LOSSES
from finetune.config.compose import as_typed
from finetune.config.conflicts import conflicts, conflicts_of_solving
from finetune.config.schema import Settings
from finetune.errors import brief, counted
from finetune.model.build import LITE0
from finetune.model.weights import PACKAGE

MOST = 3
GAP = 0.15  # of accuracy from validation to training: much is known by heart
LOST = 0.05  # of accuracy where classes count alike
FEW = 10  # images of a class to train on, or to test on in all
SOLVED = ("optimizer=lbfgs", "refit=true")


def advise(folder: Path, summary: Mapping[str, Any], settings: Settings) -> list[tuple[str, str]]:
    """What is so of a finished run and what to type, three times at most; nothing without validation."""
    rows = read_table(folder / "metrics.csv")
    if not (rows and rows[0].get("accuracy/val")):
        return []
    row = rows[-1 if summary.get("solution") and not summary.get("phases") else summary["best_epoch"] - 1]
    measure = "map" if "map/train" in row else "accuracy"
    found = _rules(summary, settings, *(float(row[f"{measure}/{side}"]) for side in ("train", "val")))
    curve = f"finetune curve {shlex.quote(str(folder))}"
    typed = None if _own_configs(folder) else summary.get("overrides")
    return [(fact, _command(typed, added) if added else curve) for fact, added in islice(found, MOST)]


def _own_configs(folder: Path) -> bool:
    """Whether a run was begun with --config-dir, which is not among what it was asked."""
    file = folder / ".hydra" / "hydra.yaml"
    return file.exists() and "provider: command-line" in file.read_text(encoding="utf-8")


def _rules(
    summary: Mapping[str, Any], settings: Settings, train: float, val: float
) -> Iterator[tuple[str, Sequence[str]]]:
    """What is so, and the settings to run again with; none: the learning curve tells more."""
    counts = {name: count for name, count in summary["data"].get("to_train", {}).items() if count}
    measured, used = summary["test"] or summary["val"], summary["weights"]["used"]
    name = "mAP" if "map" in measured else "accuracy"
    solved, gap = summary.get("solution"), f"training {name} is {train:.2f}, validation {val:.2f}"
    solvable = not (
        settings.phased or settings.ema or is_given(settings.head) or any(conflicts_of_solving(settings))
    )
    frozen = settings.freeze == ["all"]
    missing = SOLVED if not solved else () if settings.refit else SOLVED[1:]
    if used in ("bundled", "random initialisation"):
        weak = "the bundled weights are weak" if used == "bundled" else "it began with random weights"
        if used == "bundled" and find_spec(PACKAGE):
            yield f"{weak}; {LITE0}'s are better", [f"model={LITE0}", "weights=imagenet"]
        else:
            yield f"{weak}; with internet access", ["weights=imagenet"]
    if solvable and not frozen and train - val > GAP:
        yield f"{gap}: freeze more", ["freeze=all", *SOLVED]
    if solvable and frozen and missing:
        how = "refit the head" if solved else "solve for the head exactly, and refit it"
        yield f"{how} on training and validation images", missing
    data = summary["data"]
    folded = settings.model_copy(update={"data": settings.data.model_copy(update={"folds": 5})})
    refused = settings.folded or data.get("own_split") or any(conflicts(folded))
    if 0 < data["test"] < FEW and not refused and min(counts.values(), default=0) > 1:
        yield f"only {counted(data['test'], 'test image')}; to test every image once", ["data.folds=5"]
    lost = measured["accuracy"] - measured["balanced_accuracy"]
    if LOSSES[settings.loss].weighs_classes and settings.class_weights == "none" and lost > LOST:
        told = f"small classes are missed, accuracy {lost:.2f} above balanced"
        yield told, ["class_weights=balanced", *(missing if solvable and frozen else ["best=macro_f1"])]
    if few := [name for name, count in counts.items() if count < min(FEW, median(counts.values()))]:
        yield f"fewer than {FEW} images to train on of {brief(few)}; to see whether more would help", ()
    elif counts and "map" not in measured and train - val > GAP and not summary.get("curve"):
        yield f"{gap}; to see whether more images would help", ()


def _command(overrides: Sequence[str] | None, added: Sequence[str]) -> str:
    """The run's own command with these settings in place of its own; else the settings alone."""
    experiment = any(one.startswith("experiment=") for one in overrides or ())  # what it sets may not go with
    if overrides is None or experiment:
        return shlex.join(added)
    replaced = ("resume", "hydra.run.dir", *(one.partition("=")[0] for one in added))
    below = tuple(f"{key}." for key in replaced)
    kept = [one for one in overrides if not f"{one.lstrip('+~').partition('=')[0]}.".startswith(below)]
    kept = as_typed(kept) if kept[-2:] == overrides[-2:] else kept
    plugins = [one for name in os.environ.get(PLUGINS, "").split(",") if name for one in ("--plugin", name)]
    return shlex.join(["finetune", "train", *plugins, *kept, *added])
