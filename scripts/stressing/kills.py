"""Runs and sweeps that are killed, or whose disk is full, and then go on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path
from random import Random

from stressing.forks import command, disturbed
from stressing.world import (
    DROPOUT,
    JOBS,
    PHASES,
    RUNS,
    SWEEPS,
    Outcome,
    World,
    came_to,
    differences,
    judged,
    moment,
    summary_of,
)

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def prepare_run(world: World) -> None:
    world.undisturbed("dropout", *DROPOUT)


def prepare_phases(world: World) -> None:
    world.undisturbed("phases", *PHASES)


def prepare_sweeps(world: World) -> None:
    for launcher, request in SWEEPS.items():
        world.undisturbed(launcher, *request, "hydra.sweep.dir=sweep")


def kills(world: World, place: Path, chance: Random, number: int, run: str = "dropout") -> Outcome:
    """A run is killed, at times twice, and resumed."""
    like, by, request = world.known[run], chance.choice(SIGNALS), RUNS[run]
    when = moment(chance, number, like, world.seed)
    ended = disturbed(place, *request, **when, number=by)
    note = f"{signal.Signals(by).name} at {when}"
    if ended.code == 0:
        return judged(ended, lambda: compared(place / "run", like.folder / "run"), "whole", note)
    if ended.broken:
        return Outcome("broken", f"{note}: {ended.err.splitlines()[-1]}")
    if chance.random() < 0.25:
        second = chance.uniform(0, like.seconds)
        disturbed(place, *_on(place, request), moment=second, number=signal.SIGKILL)
        note += f", again after {second:.3f} s"
    ended = command(place, *_on(place, request))
    return judged(ended, lambda: compared(place / "run", like.folder / "run"), "equal", note)


def _on(place: Path, request: tuple[str, ...] = DROPOUT) -> tuple[str, ...]:
    """What goes on; before a run has settings the command itself is typed again."""
    return ("resume", "run") if (place / "run" / "settings.json").exists() else request


def compared(run: Path, whole: Path) -> str:
    return differences(came_to(run), came_to(whole))


def sweeps(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """A sweep is killed while it plans or trains, and resumed: every planned job is there."""
    launcher = ("batched", "basic")[number // 2 % 2]
    like, by = world.known[launcher], chance.choice(SIGNALS)
    when = moment(chance, number // 4 * 2 + number % 2, like, world.seed)
    request = (*SWEEPS[launcher], "hydra.sweep.dir=sweep")
    ended = disturbed(place, *request, **when, number=by)
    note = f"{launcher}, {signal.Signals(by).name} at {when}"
    if ended.broken:
        return Outcome("broken", f"{note}: {ended.err.splitlines()[-1]}")
    same = "equal" if ended.code else "whole"
    if ended.code:
        ended = command(place, "resume", "sweep")
    if ended.code == 2 and not any((place / "sweep").glob("*/checkpoints/*")):
        ended = command(place, *request)  # nothing had begun
        note += ", typed again"
    return judged(ended, lambda: lacking(place / "sweep", like.folder / "sweep", JOBS[launcher]), same, note)


def lacking(sweep: Path, whole: Path, jobs: int) -> str:
    """What a sweep's jobs lack, or come to that they should not."""
    told = []
    for number in range(jobs):
        if not (sweep / str(number) / "summary.json").exists():
            told.append(f"job {number} is lost")
        elif summary_of(sweep / str(number))["status"] != "finished":
            told.append(f"job {number} has not finished")
        else:
            found, wanted = (came_to(one / str(number), exactly=False) for one in (sweep, whole))
            if different := differences(found, wanted):
                told.append(f"job {number}: {different}")
    return "; ".join(told)


def disks(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """A run on a disk that is soon full; once there is room it is resumed."""
    like = world.known["dropout"]
    held = sum(path.lstat().st_size for path in like.folder.rglob("*") if path.is_file())
    room = int(chance.uniform(0.02, 1.0) * held)
    with_disk = os.geteuid() == 0 and _mounted(place, room)
    note = f"{room:,} bytes of {'disk' if with_disk else 'file'}"
    try:
        ended = command(place, *DROPOUT, before=int if with_disk else lambda: _longest_file(room // 3))
        if ended.broken:
            return Outcome("broken", f"{note}: {ended.err.splitlines()[-1]}")
        if ended.code == 0:
            return judged(ended, lambda: compared(place / "run", like.folder / "run"), "whole", note)
        if with_disk:
            subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        ended = command(place, *_on(place))
        return judged(ended, lambda: compared(place / "run", like.folder / "run"), "equal", note)
    finally:
        if with_disk:
            subprocess.run(["umount", "-l", place], check=True)


def _mounted(place: Path, room: int) -> bool:
    links = {path.name: path.readlink() for path in place.iterdir()}
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", place], capture_output=True)
    if made.returncode:
        return False
    for name, target in links.items():
        (place / name).symlink_to(target)
    return True


def _longest_file(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
