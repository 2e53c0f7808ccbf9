"""What folds cost, and whether their mean is that of splits drawn anew; clip art, features in the store.

python scripts/check_folds.py [TIMES]    commands are timed so often, by default three times; the least counts
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from finetune.build import build_batches, build_options, find_data
from finetune.config.compose import compose
from finetune.heads import take_statistics
from finetune.prepared import start_log
from finetune.refit import fresh_classifier, initial_state
from finetune.run import prepare, run, train
from finetune.say import Screen

ASKED = ("freeze=all", "head=10")
DRAWS = 20
TRAIN = Path(__file__).parents[1] / "train.py"
QUIET = Screen(quiet=True)


def timed(folder: Path, *overrides: str) -> tuple[float, float]:
    """Seconds of a whole command by the clock, and those of processors."""
    command = [sys.executable, str(TRAIN), *ASKED, *overrides, f"hydra.run.dir={folder}"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, work


def drawn(folder: Path) -> list[float]:
    """The test accuracy of an ordinary run for each of many splits, on features that all share."""
    settings = compose([*ASKED])
    prepared = prepare(settings, folder / "0", QUIET, build_options(settings))
    initial, found = initial_state(prepared), []
    for seed in range(1, DRAWS + 1):
        own, place = compose([*ASKED, f"data.split_seed={seed}"]), folder / str(seed)
        (place / "checkpoints").mkdir(parents=True)
        inputs = replace(prepared.inputs, dataset=find_data(own))
        one = replace(prepared, settings=own, folder=place, inputs=inputs, batches=build_batches(own, inputs))
        one = replace(one, classifier=fresh_classifier(one, initial))
        take_statistics(one.model, inputs, one.options.device, console=QUIET)
        fitted = train(one, start_log(one, figures=False), QUIET)
        assert fitted
        assert fitted.test
        found.append(fitted.test["accuracy"])
    return found


def main(folder: Path, times: int) -> None:
    timed(folder / "first")  # computes the features
    one = [timed(folder / f"one{n}") for n in range(times)]
    five = [timed(folder / f"five{n}", "data.folds=5") for n in range(times)]
    for what, single, folded in zip(
        ("clock", "processors"), zip(*one, strict=True), zip(*five, strict=True), strict=True
    ):
        least, most = min(single), min(folded)
        print(
            f"{what}: one run {least:.1f} s, data.folds=5 {most:.1f} s, {most / least:.2f} times", flush=True
        )
    found = run(compose([*ASKED, "data.folds=5"]), folder / "folded", QUIET)["folds"]["test"]["accuracy"]
    print(f"5 folds: {found['mean']:.3f} ± {found['standard_error']:.3f}, interval {found['interval']}")
    each = drawn(folder / "drawn")
    mean, spread = statistics.fmean(each), statistics.stdev(each)
    apart = abs(found["mean"] - mean) / found["standard_error"]
    print(
        f"{DRAWS} splits: mean {mean:.3f}, deviation {spread:.3f}; {apart:.2f} standard errors from the folds"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 3)
