"""Trials in processes of their own, a few at a time."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from random import Random

from stressing.world import Outcome, World


def run_trials(
    world: World, name: str, trial: Callable[..., Outcome], numbers: Iterable[int]
) -> Iterator[tuple[int, Outcome]]:
    """Each trial's number and outcome, in the order in which they end."""
    at_work: dict[int, int] = {}
    for number in numbers:
        if len(at_work) >= world.jobs:
            yield _next(world, at_work)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            _work(world, name, trial, number)
        at_work[pid] = number
    while at_work:
        yield _next(world, at_work)


def _work(world: World, name: str, trial: Callable[..., Outcome], number: int) -> None:
    try:
        place = world.furnish(str(number))
        outcome = trial(world, place, Random(f"{world.seed} {name} {number}"), number)
        with (world.folder / f"{number}.json").open("w", encoding="utf-8") as file:
            json.dump(asdict(outcome), file)
        if outcome.kind not in ("silent", "broken"):
            shutil.rmtree(place, ignore_errors=True)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _next(world: World, at_work: dict[int, int]) -> tuple[int, Outcome]:
    pid, _ = os.wait()
    number = at_work.pop(pid)
    answer = world.folder / f"{number}.json"
    if not answer.exists():
        return number, Outcome("broken", "the trial itself failed")
    return number, Outcome(**json.loads(answer.read_text(encoding="utf-8")))
