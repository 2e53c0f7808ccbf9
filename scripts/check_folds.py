"""What folds cost, and whether their mean is that of splits drawn anew; clip art, features in the store.

python scripts/check_folds.py [FOLDER]    prints one line each; runs are kept in FOLDER, by default a new one
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from finetune.config.compose import compose
from finetune.run import run

ASKED = ("freeze=all", "head=10")
DRAWS = 20
TRAIN = Path(__file__).parents[1] / "train.py"


def timed(folder: Path, *overrides: str) -> float:
    """Seconds of a whole command."""
    command = [sys.executable, str(TRAIN), *ASKED, *overrides, f"hydra.run.dir={folder}"]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main(folder: Path) -> None:
    timed(folder / "first")  # computes the features
    one, five = (
        min(timed(folder / f"{name}{n}", *more) for n in range(3))
        for name, more in (("one", []), ("five", ["data.folds=5"]))
    )
    print(f"one run {one:.1f} s, data.folds=5 {five:.1f} s: {five / one:.2f} times")
    whole = run(compose([*ASKED, "data.folds=5"]), folder / "folded", Console(quiet=True))
    found = whole["folds"]["test"]["accuracy"]
    each = [
        run(compose([*ASKED, f"data.split_seed={seed}"]), folder / f"drawn{seed}", Console(quiet=True))[
            "test"
        ]
        for seed in range(1, DRAWS + 1)
    ]
    drawn = [one["accuracy"] for one in each]
    mean, deviation = statistics.fmean(drawn), statistics.stdev(drawn)
    apart = abs(found["mean"] - mean) / found["standard_error"]
    print(f"folds {found['mean']:.3f} ± {found['standard_error']:.3f}, each {found['each']}")
    print(
        f"{DRAWS} splits drawn anew: mean {mean:.3f}, deviation {deviation:.3f}; apart by {apart:.2f} errors"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
