"""Time finetune against the loop of PyTorch's transfer-learning tutorial, as whole processes on one machine.

    python scripts/benchmark.py --photographs FOLDER…

prints the table and writes docs/benchmark.json and docs/benchmark.png.

Ratios within one run are what counts; processes take turns, so that a machine that slows down slows all.
The pictures are 500 x 375 JPEGs cut from large photographs: a class per photograph. Both sides start from the
same weights, use 224 px, SGD 0.01 with momentum 0.9, StepLR and batches of 64. The tutorial's loop runs once
a seed: its time for fewer epochs is that of the process less the later epochs, and its time for more than
`--loop-epochs` is reckoned with its median epoch, as each of its epochs does the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from photographs import ROOT, cut_pictures, save_weights
from rich.console import Console
from rich.table import Table

EPOCHS = {"all": [10, 25], "through:layer3": [10], "none": [1, 3]}


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


def run_loop(work: Path, rows: list[Row], seed: int, most: int, *options: str) -> None:
    """One process of the tutorial's loop, for the rows of all numbers of epochs."""
    ran = min(most, max(row.epochs for row in rows))
    process = run(
        [
            *(sys.executable, "scripts/tutorial_loop.py", str(work / "pictures"), f"--seed={seed}"),
            *(f"--weights={work / 'resnet18.pth'}", f"--freeze={rows[0].freeze}", f"--epochs={ran}"),
            *options,
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


def run_ours(work: Path, row: Row, seed: int, *overrides: str, cold: bool = False) -> None:
    """One process of ours; a cold one begins with an empty store."""
    cache, folder = work / "cache", work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    process = run(
        [
            *(sys.executable, "train.py", "data=folder", f"data.root={work / 'pictures'}", f"seed={seed}"),
            *(f"weights={work / 'resnet18.pth'}", f"freeze={row.freeze}", f"epochs={row.epochs}"),
            *("data.val_fraction=0", "schedule=step", f"cache_dir={cache}", f"hydra.run.dir={folder}"),
            *overrides,
        ]
    )
    summary = json.loads((folder / "summary.json").read_text())
    row.seconds.append(process.seconds)
    row.memory.append(process.memory)
    row.accuracy.append(summary["val"]["accuracy"])
    features = summary["features"]
    if features and features["computed"]:
        row.rate.append(features["computed"] / features["seconds"])


def compare(work: Path, freeze: str, repeats: int, most: int) -> list[dict[str, Any]]:
    """Every contender for one freeze, taking turns; ours with and without a cache, cold and warm."""

    def rows(contender: str, numbers: list[int]) -> list[Row]:
        return [Row(contender, freeze, number) for number in numbers]

    numbers = EPOCHS[freeze]
    tutorial = rows("tutorial", numbers)
    if freeze == "none":
        ours = {"ours": (rows("ours", numbers), (), False)}
    else:
        plain = rows("tutorial, no augmentation", numbers[:1])
        run_loop(work, plain, 0, most, "--no-augment")
        ours = {
            "fp32, cold": (rows("ours, fp32, cold", numbers[:1]), ("precision=32",), True),
            "cold": (rows("ours, cold", numbers), (), True),
            "warm": (rows("ours, warm", numbers), (), False),
        }
    for seed in range(repeats):
        run_loop(work, tutorial, seed, most)
        for name, (group, overrides, cold) in ours.items():
            for row in group:
                run_ours(work, row, seed, *overrides, cold=cold)
                print(f"{freeze}, {row.epochs} epochs, {name}: {row.seconds[-1]:.1f} s", file=sys.stderr)
    if freeze != "none":
        uncached = rows("ours, cache=none", numbers[:1])
        run_ours(work, uncached[0], 0, "cache=none", "data.augment=none")
        tutorial_rows = [*tutorial, *plain, *uncached]
    else:
        tutorial_rows = tutorial
    against = {row.epochs: row for row in tutorial}
    found = [*tutorial_rows, *(row for group, _, _ in ours.values() for row in group)]
    return [row.described(against[row.epochs]) for row in found]


def chart(rows: list[dict[str, Any]], target: Path) -> None:
    """How many times faster than the tutorial's loop, for each freeze and number of epochs."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["contender"].startswith("ours")][::-1]
    figure = Figure(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    labels = [
        f"freeze={row['freeze']}, {row['epochs']} epochs{row['contender'].removeprefix('ours')}"
        for row in shown
    ]
    bars = axes.barh(labels, [row["ratio"] for row in shown], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1f x", padding=3)
    axes.set(xscale="log", xlabel="times faster than the tutorial's loop (whole processes)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.savefig(target, dpi=110)


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for the terminal."""
    drawn = Table()
    for heading in (
        "freeze",
        "epochs",
        "contender",
        "runs",
        "seconds",
        "ratio",
        "accuracy",
        "MB",
        "images/s",
    ):
        drawn.add_column(heading, justify="left" if heading in ("freeze", "contender") else "right")
    for row in rows:
        accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        spread = "" if row["accuracy_std"] is None else f" ± {row['accuracy_std']:.3f}"
        rate = row["pictures_per_second"]
        drawn.add_row(
            *(row["freeze"], str(row["epochs"]), row["contender"], str(row["runs"])),
            *(f"{row['seconds']:.1f}", f"{row['ratio']:.1f}x", accuracy + spread),
            *(f"{row['memory_mb']:.0f}", f"{rate:.0f}" if rate else ""),
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="large photographs")
    parser.add_argument("--freeze", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-epochs", type=int, default=25, help="most epochs that the loop really runs")
    parser.add_argument("--pictures", type=int, nargs=2, default=[1000, 300], metavar=("TRAIN", "VAL"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        work = Path(name)
        cut_pictures(arguments.photographs, work / "pictures", *arguments.pictures, classes=20)
        save_weights(work / "resnet18.pth")
        for freeze in arguments.freeze:
            rows += compare(work, freeze, arguments.repeats, arguments.loop_epochs)
            (arguments.out / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=120).print(table(rows))
    chart(rows, arguments.out / "benchmark.png")


if __name__ == "__main__":
    main()
