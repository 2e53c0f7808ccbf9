"""What `freeze=auto` is worth: on redrawn splits every rung runs, whatever the ladder decides.

    python scripts/check_ladder.py [--stamps FOLDER] [--fashion FOLDER] [--photographs FOLDER…]
        [--draws 10] [--only PART…]

Data sets and splits are those of scripts/benchmark_heads.py, bundled weights. A draw tells each rung's
accuracy and seconds, the seconds that were forecast, how many rungs `freeze=auto` would have climbed and
which one it would have kept. Writes docs/check_ladder.json; draws that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark_heads import Draw, find_data_sets, interval
from photographs import ROOT
from rich.console import Console

import finetune.ladder
import finetune.phases
from finetune.config.compose import compose
from finetune.ladder import Ladder
from finetune.prepared import Prepared
from finetune.run import run


class Climber(Ladder):
    """A ladder that is climbed to its end; `ended` is the rung after which it would have ended, `expected`
    the forecasts of all but the first."""

    last: Climber

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.ended: int | None = None
        self.chosen = 0
        self.expected: list[float] = []
        Climber.last = self

    def may_begin(self, prepared: Prepared) -> bool:
        if len(self.right):
            self.expected.append(finetune.ladder.forecast(prepared))
        return super().may_begin(prepared)

    def goes_on(self, summary: dict[str, Any]) -> bool:
        goes_on = super().goes_on(summary)
        if self.ended is None:
            self.chosen = self.kept
            self.ended = None if goes_on else len(self.right) - 1
        self.kept, self.rung = len(self.right) - 1, len(self.right)
        return True


def climbed(draw: Draw) -> dict[str, Any]:
    """All rungs of one split, and what the ladder would have made of them."""
    summary = run(compose([*draw.overrides, "freeze=auto"]), draw.folder / "run", Console(quiet=True))
    climber = Climber.last
    rungs = summary["phases"]
    seconds = [one["timing"]["total"] for one in rungs]
    return {
        "test": [one["test"]["accuracy"] for one in rungs],
        "val": [one["val"]["accuracy"] for one in rungs],
        "seconds": seconds,
        "training": [one["timing"]["training"] for one in rungs[1:]],
        "forecast": climber.expected,
        "kept": climber.chosen,
        "climbed": (len(rungs) - 1 if climber.ended is None else climber.ended) + 1,
    }


def show(row: str, draws: list[dict[str, Any]]) -> None:
    """The means over all draws."""
    rungs = range(len(draws[0]["test"]))
    means = [statistics.fmean(one["test"][rung] for one in draws) for rung in rungs]
    best = max(rungs, key=lambda rung: means[rung])
    kept = [one["test"][one["kept"]] for one in draws]
    apart = [100 * (ours - one["test"][best]) for ours, one in zip(kept, draws, strict=True)]
    spent = statistics.fmean(sum(one["seconds"][: one["climbed"]]) / sum(one["seconds"]) for one in draws)
    factors = [
        max(told / took, took / told)
        for one in draws
        for told, took in zip(one["forecast"], one["training"], strict=True)
    ]
    print(f"{row}, {len(draws)} draws: rungs {', '.join(f'{mean:.3f}' for mean in means)}")
    print(f"  kept {statistics.fmean(kept):.3f}, which is {statistics.fmean(apart):+.1f}", end=" ")
    print(f"± {interval(apart):.1f} points from rung {best + 1}, in {spent:.2f} of the time of all")
    within = statistics.fmean(one <= 1.5 for one in factors)
    print(
        f"  forecasts off by {statistics.median(factors):.2f} (median), {max(factors):.2f} (most)", end=", "
    )
    print(f"{within:.0%} within 1.5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=Path, nargs="+")
    for folder in ("stamps", "fashion"):
        parser.add_argument(f"--{folder}", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/check_ladder.json")
    asked = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    finetune.phases.Ladder = Climber  # type: ignore[misc]
    with TemporaryDirectory() as name:
        for row, data in find_data_sets(asked, Path(name)).items():
            if asked.only and not any(part in row for part in asked.only):
                continue
            done = results.setdefault(row, [])
            for draw in data.draws(asked.draws, ["weights=bundled"], Path(name)):
                if draw.seed < len(done):
                    continue
                done.append(climbed(draw))
                print(row, draw.seed, done[-1], file=sys.stderr, flush=True)
                asked.out.write_text(json.dumps(results, indent=1) + "\n")
    for row, draws in results.items():
        show(row, draws)


if __name__ == "__main__":
    main()
