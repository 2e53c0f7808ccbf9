"""Time finetune against the loop of PyTorch's transfer-learning tutorial, as whole processes on one machine.

    python scripts/benchmark.py --photographs FOLDER…
    python scripts/benchmark.py --photographs FOLDER… --sweep

prints the table and writes docs/benchmark.json and docs/benchmark.png, or docs/benchmark_sweep.json.

Ratios within one run are what counts; processes take turns, so that a machine that slows down slows all.
The pictures are 500 x 375 JPEGs cut from large photographs: a class per photograph. Both sides start from the
same weights, use 224 px, SGD 0.01 with momentum 0.9, StepLR and batches of 64. The tutorial's loop runs once
a seed: its time for fewer epochs is that of the process less the later epochs, and its time for more than
`--loop-epochs` is reckoned with its median epoch, as each of its epochs does the same work.

    python scripts/benchmark.py --photographs FOLDER… --freeze all --model timm/NAME --weights FILE

takes another model with weights of its own; `--out` keeps its figures apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark_sweep import compare_sweep
from contenders import Row, Work, run_loop, run_ours
from photographs import ROOT, cut_pictures, save_weights
from rich.console import Console
from rich.table import Table

EPOCHS = {"all": [3, 10, 25], "through:layer3": [10], "none": [1, 2]}


def compare(work: Work, freeze: str, repeats: int, most: int) -> list[dict[str, Any]]:
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
            "fp32, cold": (rows("ours, fp32, cold", numbers[-2:-1] or numbers), ("precision=32",), True),
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
        f"freeze={row['freeze']}, {row['epochs']} epoch{'s' * (row['epochs'] > 1)}"
        f"{row['contender'].removeprefix('ours')}"
        for row in shown
    ]
    bars = axes.barh(labels, [row["ratio"] for row in shown], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1f x", padding=3)
    times = [1, 2, 5, 10, 20, 50, 100, 200, 500]
    label = "times faster than the tutorial's loop (whole processes)"
    axes.set(xscale="log", xlabel=label)
    axes.set_xticks(times, [f"{one}" for one in times])
    axes.minorticks_off()
    axes.set_xlim(1, 1.6 * max(row["ratio"] for row in shown))
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
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
    parser.add_argument("--model", default="resnet18", help="another one of torchvision's or timm/NAME")
    parser.add_argument("--weights", type=Path, help="its state dict; the bundled resnet18's by default")
    parser.add_argument("--freeze", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--sweep", action="store_true", help="time a sweep of 32 jobs instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop-epochs", type=int, default=25, help="most epochs that the loop really runs")
    parser.add_argument("--pictures", type=int, nargs=2, default=[1000, 300], metavar=("TRAIN", "VAL"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        work = Work(Path(name), arguments.model, arguments.weights or Path(name) / "resnet18.pth")
        cut_pictures(arguments.photographs, work.folder / "pictures", *arguments.pictures, classes=20)
        if not arguments.weights:
            save_weights(work.weights)
        if arguments.sweep:
            found = compare_sweep(work, arguments.repeats, arguments.loop_epochs)
            (arguments.out / "benchmark_sweep.json").write_text(json.dumps(found, indent=2) + "\n")
            return print(json.dumps(found, indent=2))
        for freeze in arguments.freeze:
            rows += compare(work, freeze, arguments.repeats, arguments.loop_epochs)
            (arguments.out / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=120).print(table(rows))
    chart(rows, arguments.out / "benchmark.png")


if __name__ == "__main__":
    main()
