"""The sides of the benchmarks as whole processes: the tutorial's loop and ours."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from photographs import ROOT


@dataclass(frozen=True)
class Work:
    """What all sides work with: a folder with the pictures, a model, and a file with its weights."""

    folder: Path
    model: str
    weights: Path


@dataclass
class Process:
    """What a whole process took and came to: wall seconds, peak memory in MB, and what it says itself."""

    seconds: float
    memory: float
    output: str


def run(command: list[str]) -> Process:
    """Run a command from the project's folder; ends the benchmark where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output}")
    return Process(time.perf_counter() - started, usage.ru_maxrss / 1000, output)


@dataclass
class Row:
    """A contender's runs for one number of epochs; rates are pictures a second."""

    contender: str
    freeze: str
    epochs: int
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)

    def described(self, tutorial: Row) -> dict[str, Any]:
        several = len(self.accuracy) > 1
        return {
            "contender": self.contender,
            "freeze": self.freeze,
            "epochs": self.epochs,
            "runs": len(self.seconds),
            "seconds": statistics.median(self.seconds),
            "all_seconds": self.seconds,
            "ratio": statistics.median(tutorial.seconds) / statistics.median(self.seconds),
            "memory_mb": max(self.memory),
            "accuracy": statistics.mean(self.accuracy) if self.accuracy else None,
            "accuracy_std": statistics.stdev(self.accuracy) if several else None,
            "pictures_per_second": statistics.median(self.rate) if self.rate else None,
        }


def run_loop(work: Work, rows: list[Row], seed: int, most: int, *options: str) -> None:
    """One process of the tutorial's loop, for the rows of all numbers of epochs."""
    ran = min(most, max(row.epochs for row in rows))
    process = run(
        [
            *(sys.executable, "scripts/tutorial_loop.py", str(work.folder / "pictures"), f"--seed={seed}"),
            *(f"--model={work.model}", f"--weights={work.weights}", f"--freeze={rows[0].freeze}"),
            *(f"--epochs={ran}", *options),
        ]
    )
    told = json.loads(process.output.splitlines()[-1])
    epoch = statistics.median(told["epoch_seconds"])
    for row in rows:
        later = sum(told["epoch_seconds"][row.epochs :])
        row.seconds.append(process.seconds - later + max(row.epochs - ran, 0) * epoch)
        row.memory.append(process.memory)
        row.rate.append(told["pictures"] / epoch)
        if row.epochs <= ran:
            row.accuracy.append(max(told["accuracies"][: row.epochs]))


def run_ours(work: Work, row: Row, seed: int, *overrides: str, cold: bool = False) -> None:
    """One process of ours; a cold one begins with an empty store."""
    folder = work.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    options = (f"seed={seed}", f"freeze={row.freeze}", f"epochs={row.epochs}", f"hydra.run.dir={folder}")
    process = run(ours(work, *options, *overrides, cold=cold))
    summary = json.loads((folder / "summary.json").read_text())
    row.seconds.append(process.seconds)
    row.memory.append(process.memory)
    row.accuracy.append(summary["val"]["accuracy"])
    features = summary["features"]
    if features and features["computed"]:
        row.rate.append(features["computed"] / features["seconds"])


def ours(work: Work, *overrides: str, cold: bool = False) -> list[str]:
    """Our command line, `-m` first in a sweep; a cold one begins with an empty store."""
    cache = work.folder / "cache"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    return [
        *(sys.executable, "train.py", *overrides, "data=folder", f"data.root={work.folder / 'pictures'}"),
        *("data.val_fraction=0", f"model={work.model}", f"weights={work.weights}"),
        *("schedule=step", f"cache_dir={cache}"),
    ]
