"""Caches cleared, images replaced, runs beside each other, and two writers in one folder."""

from __future__ import annotations

import os
import shutil
import signal
import time
import zlib
from functools import partial
from pathlib import Path
from random import Random

from stressing.forks import Ended, Process, Writes, command
from stressing.kills import compared
from stressing.world import (
    BASE,
    DROPOUT,
    Outcome,
    Undisturbed,
    World,
    differences,
    judged,
    rows_of,
    summary_of,
)

# Rows are written again and again while images are decoded; what is learned of them is in the run's answers.
EXTRACT = ("train", *BASE, "freeze=all", "epochs=2")
ROW = 4096  # bytes: 1024 numbers in fp32
ENTRY = 36  # bytes of the index: a SHA-256 and a CRC-32


def prepare(world: World) -> None:
    for seed in range(3):
        like = world.undisturbed(f"seed{seed}", *EXTRACT, f"seed={seed}", "hydra.run.dir=run")
        # Read otherwise than stores are written, no row would count, and none be wrong.
        assert len(rows_in(like.folder / "store")) == 90


def _slow(chance: Random, most: float) -> Writes:
    """A disk on which each change takes its time."""
    return Writes(lambda number: time.sleep(chance.uniform(0, most)))


def rows_in(cache: Path) -> dict[str, bytes]:
    """Each row of a cache's stores by the digest of its image; those alone whose checksum holds."""
    found = {}
    for index in (cache / "features").glob("*/index.bin"):
        data = index.with_name("data.bin").read_bytes() if index.with_name("data.bin").exists() else b""
        entries = index.read_bytes()
        for place in range(min(len(entries) // ENTRY, len(data) // ROW)):
            entry = entries[place * ENTRY : (place + 1) * ENTRY]
            digest, total = entry[:32].hex(), int.from_bytes(entry[32:], "little")
            row = data[place * ROW : (place + 1) * ROW]
            if zlib.crc32(row, zlib.crc32(digest.encode())) == total:
                found[digest] = row
    return found


def wrong_rows(cache: Path, right: dict[str, bytes]) -> int:
    """How many rows that would be used differ from those of an undisturbed run."""
    return sum(row != right[digest] for digest, row in rows_in(cache).items() if digest in right)


def answers_of(run: Path) -> dict[str, object]:
    """What a run came to, as it says itself."""
    summary = summary_of(run)
    table = rows_of(run / "predictions.csv")
    return {"val": summary["val"], "test": summary["test"], "predictions": table}


def same_answers(run: Path, whole: Path) -> str:
    return differences(answers_of(run), answers_of(whole))


def worst(outcomes: list[Outcome]) -> Outcome:
    """The one that matters most."""
    order = ("silent", "broken", "told", "equal", "whole")
    return min(outcomes, key=lambda one: order.index(one.kind))


def _runs(world: World, place: Path, ended: dict[int, Ended], note: str) -> Outcome:
    """Runs of several seeds, and one more that takes what they left in the store."""
    whole = {seed: world.known[f"seed{seed}"].folder / "run" for seed in range(3)}
    found = [
        judged(one, partial(same_answers, place / f"run{seed}", whole[seed]), "whole", f"{note}, seed {seed}")
        for seed, one in ended.items()
    ]
    wrong = wrong_rows(place / "store", rows_in(world.known["seed0"].folder / "store"))
    if wrong:
        found.append(Outcome("silent", f"{note}: {wrong} wrong rows"))
    later = command(place, *EXTRACT, "seed=0", "hydra.run.dir=later")
    same = partial(same_answers, place / "later", whole[0])
    found.append(judged(later, same, "whole", f"{note}, a later run"))
    return worst(found)


def _stopping(like: Undisturbed, chance: Random) -> tuple[Writes, int]:
    """What makes a run stand still before one of its changes to the feature store, and which."""
    at = chance.randint(like.storing, like.planning)

    def act(count: int) -> None:
        if count == at:
            os.kill(os.getpid(), signal.SIGSTOP)

    return Writes(act), at


def _begun(world: World, place: Path, chance: Random, number: int) -> tuple[Process, str]:
    """A run that computes features: after a while, or every other time standing still."""
    like, request = world.known["seed0"], (*EXTRACT, "seed=0", "hydra.run.dir=run0")
    if number % 2 == 0:
        when = chance.uniform(0.1, 0.8) * like.seconds
        process = Process(place, *request)
        process.until(when)
        return process, f"at {when:.3f} s"
    writes, at = _stopping(like, chance)
    process = Process(place, *request, writes=writes)
    process.until_stopped()
    return process, f"while a run stood before change {at}"


def clears(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """`finetune cache --clear`, or at times rm -rf, while one run computes features and another comes."""
    removed = chance.random() < 0.2
    first, note = _begun(world, place, chance, number)
    cleared = None
    if removed:
        shutil.rmtree(place / "store", ignore_errors=True)
    else:
        cleared = Process(place, "cache", "--clear", "cache_dir=store")
        cleared.until(5.0)
    ended, told = _beside(world, place, chance, first, stands=bool(number % 2))
    note = f"{'rm -rf' if removed else 'cleared'} {note}, {told}"
    if cleared and (one := cleared.wait()).broken:
        return Outcome("broken", f"{note}: {one.err.splitlines()[-1]}")
    return _runs(world, place, ended, note)


def _beside(
    world: World, place: Path, chance: Random, first: Process, stands: bool
) -> tuple[dict[int, Ended], str]:
    """Another run comes; where the first one stands still, it goes on when the other stands in its turn."""
    like, request = world.known["seed1"], (*EXTRACT, "seed=1", "hydra.run.dir=run1")
    if not stands:
        time.sleep(after := chance.choice([0.0, chance.uniform(0, 0.2), chance.uniform(0, like.seconds)]))
        second = Process(place, *request)
        return {0: first.wait(), 1: second.wait()}, f"another run {after:.3f} s later"
    writes, at = _stopping(like, chance)
    second = Process(place, *request, writes=writes)
    stood = second.until_stopped(3 * like.seconds)  # not where it waits for the first one
    first.send(signal.SIGCONT)
    if stood:
        time.sleep(chance.uniform(0, 0.3))
        second.send(signal.SIGCONT)
    ended = first.wait()
    second.until_stopped()
    second.send(signal.SIGCONT)
    return {0: ended, 1: second.wait()}, f"another before change {at}"


def replaced(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """Images take each other's names while their features are computed."""
    like = world.known["seed0"]
    first, note = _begun(world, place, chance, number)
    paths = chance.sample(sorted((place / "images").rglob("*.png")), 40)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        part = path.with_suffix(".part")
        part.write_bytes(content)
        os.replace(part, path)
    note = f"40 images replaced {note}"
    first.send(signal.SIGCONT)
    ended = first.wait()
    if ended.broken:
        return Outcome("broken", f"{note}: {ended.err.splitlines()[-1]}")
    if wrong := wrong_rows(place / "store", rows_in(like.folder / "store")):
        return Outcome("silent", f"{note}: {wrong} wrong rows")
    later = command(place, *EXTRACT, "seed=0", "hydra.run.dir=later")
    fresh = command(place, *EXTRACT, "seed=0", "hydra.run.dir=fresh", "cache_dir=other")
    for one in (later, fresh):
        if one.code:
            return Outcome("broken" if one.broken else "told", f"{note}: {one.err.strip().splitlines()[-1]}")
    if different := same_answers(place / "later", place / "fresh"):
        return Outcome("silent", f"{note}: of a later run {different} differ")
    return Outcome("told" if ended.code else "whole", f"{note}: {ended.err.strip()}")


def races(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """Three runs begin with one empty cache, at times on a slow disk; one is at times killed."""
    begun, started, length = {}, time.monotonic(), world.known["seed0"].seconds
    offsets = sorted(chance.choice([0.0, chance.uniform(0, length)]) for _ in range(3))
    for seed, offset in enumerate(offsets):
        time.sleep(max(0.0, started + offset - time.monotonic()))
        writes = _slow(chance, 0.02) if chance.random() < 0.5 else None
        begun[seed] = Process(place, *EXTRACT, f"seed={seed}", f"hydra.run.dir=run{seed}", writes=writes)
    note = f"three runs at {', '.join(f'{offset:.3f}' for offset in offsets)} s"
    if number % 2:
        begun[0].until(moment := chance.uniform(0.1, 1.2) * length)
        begun[0].send(9)
        note += f", the first killed after {moment:.3f} s"
    ended = {seed: process.wait() for seed, process in begun.items()}
    return _runs(world, place, {seed: one for seed, one in ended.items() if one.code != -9}, note)


def writers(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """Two processes go on with one run: one of them is refused, or both leave what one would have."""
    like, begun = world.known["dropout"], chance.uniform(0.0, 0.5)
    request = (*DROPOUT, "resume=auto")
    first = Process(place, *request)
    first.until(begun * like.seconds)
    second = Process(place, *request)
    ended = [first.wait(), second.wait()]
    note = f"the second {begun * like.seconds:.3f} s after the first"
    for one in ended:
        if one.broken:
            return Outcome("broken", f"{note}: {one.err.strip().splitlines()[-1]}")
    if different := compared(place / "run", like.folder / "run"):
        return Outcome("silent", f"{note}: {different} differ")
    return Outcome("told" if any(one.code for one in ended) else "whole", note)
