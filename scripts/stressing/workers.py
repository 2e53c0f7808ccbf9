"""Runs that several processes train, of which one is killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from random import Random

from stressing.forks import Process, command
from stressing.kills import SIGNALS, compared
from stressing.world import DROPOUT, Outcome, World, judged

RUN = (*DROPOUT, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "epochs=40")
LONGEST = 20.0  # seconds that the others have to end


def prepare(world: World) -> None:
    world.undisturbed("workers", *RUN)


def workers(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """The process that began the others, or one of these, gets a signal; all end, and the run is resumed."""
    like, by = world.known["workers"], chance.choice(SIGNALS)
    moment, which = chance.uniform(0, 1.1 * like.seconds), chance.choice(["parent", 0, 1])
    process = Process(place, *RUN)
    process.until(moment)
    started = children(process.pid)
    if which == "parent" or which >= len(started):
        which = "parent"
        process.send(by)
    else:
        send(started[which], by)
    note = f"{signal.Signals(by).name} to {which} after {moment:.1f} s"
    ended = process.wait()
    if ended.broken:
        return Outcome("broken", f"{note}: {ended.err.strip().splitlines()[-1]}")
    until = time.monotonic() + LONGEST
    while any(Path(f"/proc/{one}").exists() for one in started):
        if time.monotonic() > until:
            return Outcome("broken", f"{note}: a process is left")
        time.sleep(0.1)
    if ended.code:
        again = ("resume", "run") if (place / "run" / "settings.json").exists() else RUN
        ended = command(place, *again)
    return judged(ended, lambda: compared(place / "run", like.folder / "run"), "equal", note)


def children(pid: int) -> list[int]:
    """The processes that one has started."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def send(pid: int, number: int) -> None:
    """A signal; nothing where the process has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
