"""What others do with a frozen backbone, on the same splits, for scripts/benchmark_heads.py."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from photographs import ROOT
from rich.console import Console

from finetune.config.compose import compose
from finetune.run import run

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nine, as LightlyTrain tries them at once


def lay_out(table: Path, folder: Path) -> Path:
    """The images of a table of paths, labels and splits as folders of links: train, val and valid, test."""
    with table.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            for split in ("val", "valid") if row["split"] == "val" else (row["split"],):
                path = Path(row["path"])
                link = folder / split / row["label"] / f"{number}{path.suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())
    return folder


def run_tutorial(folder: Path, weights: Path, size: int, seed: int, *options: str) -> dict[str, Any]:
    """The tutorial's loop, frozen, ten epochs; its best epoch on val answers for test."""
    options = (f"--weights={weights}", f"--size={size}", f"--seed={seed}", "--epochs=10", *options)
    return _last_line([sys.executable, "scripts/tutorial_loop.py", str(folder), *options])


def run_fastai(python: Path, folder: Path, weights: Path, size: int, seed: int) -> dict[str, Any]:
    """fastai's vision_learner, frozen, four epochs of its one-cycle schedule."""
    options = (f"--weights={weights}", f"--size={size}", f"--seed={seed}")
    return _last_line([str(python), "scripts/fastai_learner.py", str(folder), *options])


def _last_line(command: list[str]) -> dict[str, Any]:
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(ended.stdout.splitlines()[-1])
    return {"accuracy": told["accuracy"], "seconds": told["seconds"], "log_loss": None}


def run_nine_rates(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """SGD on features that are not standardised, with nine rates; the best in validation answers for test."""
    found = []
    for rate in RATES:
        own = ("standardize=false", f"optimizer.lr={rate}")
        settings = compose([*overrides, *own])
        found.append(run(settings, folder / str(rate), Console(quiet=True)))
    best = max(found, key=lambda one: one["val"]["accuracy"])
    return {
        "accuracy": best["test"]["accuracy"],
        "log_loss": best["test"]["loss"],
        "seconds": sum(one["timing"]["training"] for one in found),
    }
