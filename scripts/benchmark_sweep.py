"""A sweep of 32 jobs against one job, and against 32 runs of the tutorial's loop."""

from __future__ import annotations

import shutil
import statistics
import sys
from typing import Any

from contenders import Row, Work, ours, run, run_loop

EPOCHS = 20
GRID = ("optimizer.lr=0.1,0.03,0.01,0.003", "optimizer.momentum=0,0.9", "seed=0,1,2,3")
JOBS = 32


def compare_sweep(work: Work, repeats: int, loop_epochs: int) -> dict[str, Any]:
    """Whole processes in turn, each as often as asked: one job and the sweep, cold and warm.

    The 32 runs of the tutorial's loop are reckoned from one.
    """
    loop = Row("tutorial", "all", EPOCHS)
    run_loop(work, [loop], 0, loop_epochs)
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for temperature in ("cold", "warm"):
            for name, options in (("one job", ()), (f"{JOBS} jobs", ("-m", *GRID))):
                folder = work.folder / "sweep"
                shutil.rmtree(folder, ignore_errors=True)
                folders = (f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}")
                options = (*options, f"epochs={EPOCHS}", *folders)
                command = ours(work, *options, cold=temperature == "cold")
                taken = run(command).seconds
                seconds.setdefault(f"{name}, {temperature}", []).append(taken)
                print(f"{name}, {temperature}: {taken:.1f} s", file=sys.stderr)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {"tutorial, one run": loop.seconds[0], **median},
        "all_seconds": seconds,
        "ratios": {
            "32 jobs cold / one job cold": median["32 jobs, cold"] / median["one job, cold"],
            "32 jobs warm / one job warm": median["32 jobs, warm"] / median["one job, warm"],
            "32 tutorial runs / 32 jobs cold": JOBS * loop.seconds[0] / median["32 jobs, cold"],
            "32 tutorial runs / 32 jobs warm": JOBS * loop.seconds[0] / median["32 jobs, warm"],
        },
    }
