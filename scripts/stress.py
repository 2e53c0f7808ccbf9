"""Kills, damages and races by the hundred, and a table of what came of them.

    python scripts/stress.py [KIND…] [--times N] [--seed S] [--jobs J] [--only NUMBER] [--folder DIR]

Without kinds all are tried, in 15 to 20 minutes on two cores; docs/stress.md says what they are. Each trial
follows from the seed and its number: `--only` repeats one. Ends with 1 where something was silent or
broken.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from stressing import corruptions, flips, kills, stores, workers
from stressing.forks import preload
from stressing.pool import run_trials
from stressing.world import Outcome, Undisturbed, World


@dataclass(frozen=True)
class Kind:
    """What is tried, how often by default, and what is prepared once."""

    what: str
    times: int
    prepare: Callable[[World], None]
    trial: Callable[..., Outcome]
    own_images: bool = False


KINDS = {
    "kills": Kind("a run killed, then resumed", 100, kills.prepare_run, kills.kills),
    "phases": Kind(
        "a run of phases killed, then resumed",
        20,
        kills.prepare_phases,
        partial(kills.kills, run="phases"),
    ),
    "sweeps": Kind("a sweep killed, then resumed", 100, kills.prepare_sweeps, kills.sweeps),
    "disks": Kind("a disk that is full, then is not", 40, kills.prepare_run, kills.disks),
    "flips": Kind("a bit flipped in a run, a sweep, a store", 300, flips.prepare, flips.flips),
    "curves": Kind(
        "a bit flipped in metrics.csv or TensorBoard's log",
        40,
        flips.prepare,
        partial(flips.flips, curves=True),
    ),
    "corruptions": Kind(
        "a file damaged: cut, emptied, overwritten, gone",
        500,
        corruptions.prepare,
        corruptions.corruptions,
    ),
    "clears": Kind("the cache cleared under two runs", 100, stores.prepare, stores.clears),
    "replaced": Kind("images replaced under a run", 100, stores.prepare, stores.replaced, own_images=True),
    "races": Kind("three runs with one empty cache", 40, stores.prepare, stores.races),
    "writers": Kind(
        "two processes that resume one run",
        20,
        kills.prepare_run,
        stores.writers,
    ),
    "workers": Kind("one of a run's processes killed, then resumed", 12, workers.prepare, workers.workers),
}
ENDS = ("whole", "equal", "told", "silent", "broken")


def stress(
    names: Sequence[str],
    folder: Path,
    times: int | None = None,
    seed: int = 0,
    jobs: int = 2,
    only: int | None = None,
) -> dict[str, Counter[str]]:
    """How often each kind of trial ended in which way; what is silent or broken is told on stderr.

    folder: an empty one, where trials work.
    """
    preload()
    found, known, looks = dict[str, Counter[str]](), dict[str, Undisturbed](), dict[str, Any]()
    for name in names:
        kind, began = KINDS[name], time.monotonic()
        world = World(folder / name, seed, jobs, kind.own_images, known=known, looks=looks)
        kind.prepare(world)
        numbers = range(times or kind.times) if only is None else [only]
        for number, outcome in run_trials(world, name, kind.trial, numbers):
            row = f"{name}: {outcome.about}" if outcome.about else name
            found.setdefault(row, Counter[str]())[outcome.kind] += 1
            if outcome.kind in ("silent", "broken"):
                line = f"{name} --seed {seed} --only {number}: {outcome.kind}: {outcome.note}"
                print(line, file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """As Markdown."""
    lines = [
        "| | tried | times | ended whole | resumed equal, harmless | told | silent | traceback |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, counts in sorted(found.items()):
        cells = [
            name,
            KINDS[name.partition(":")[0]].what,
            str(counts.total()),
            *(str(counts[end]) for end in ENDS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def failed(found: dict[str, Counter[str]]) -> bool:
    """Whether anything was silent or broken."""
    return any(counts["silent"] + counts["broken"] for counts in found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="all by default")
    parser.add_argument("--times", type=int, help="trials of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one trial alone")
    parser.add_argument("--folder", type=Path, help="an empty one for the trials, which is left as they end")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="stress-"))
    names = given.kinds or list(KINDS)
    try:
        found = stress(names, folder, given.times, given.seed, given.jobs, given.only)
    finally:
        if not given.folder:
            shutil.rmtree(folder)
    print(table(found))
    return int(failed(found))


if __name__ == "__main__":
    sys.exit(main())
