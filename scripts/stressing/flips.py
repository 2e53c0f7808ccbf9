"""Single bits flipped in every file of a run, a sweep and a feature store: refused, told or harmless."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from finetune.errors import RequestError, RunError
from stressing.forks import Ended, command
from stressing.world import BASE, RUN, SWEEPS, Outcome, World, came_to, rows_of, summary_of

# What tells a user that something is not as it was.
WORDS = re.compile(
    r"warning|note |not ended|damaged|changed|missing|differ|expected|computed again|cannot|refused|older"
    r"|unknown"
)
CURVES = ("metrics.csv", "tensorboard")  # what only shows how a run went
Look = Callable[[Path], list[tuple[Ended, Any]]]


def prepare(world: World) -> None:
    """A finished run with a store, the same one interrupted, and a sweep; what each answers undisturbed."""
    if world.looks:
        return
    world.undisturbed("run", *RUN)
    world.undisturbed("batched", *SWEEPS["batched"], "hydra.sweep.dir=sweep")
    half = world.furnish("undisturbed/half/0")
    shutil.copytree(world.known["run"].folder / "store", half / "store")
    stopped = command(half, *RUN, before=stop_after_two_epochs)
    assert stopped.code == -9, stopped.err
    world.known["half"] = replace(world.known["run"], folder=half)
    for kind, (look, _) in KINDS.items():
        place = _copied(world, kind, world.folder / "undisturbed" / "looks" / kind)
        world.looks[kind] = look(place)
        for ended, _ in world.looks[kind]:
            assert ended.code == 0, ended.err


def stop_after_two_epochs() -> None:
    import os
    import signal

    from finetune.training.checkpoint import Checkpoints

    keep = Checkpoints.on_train_epoch_end

    def kept(self: Any, trainer: Any, module: Any) -> None:
        keep(self, trainer, module)
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.on_train_epoch_end = kept  # type: ignore[method-assign]


def _copied(world: World, kind: str, place: Path) -> Path:
    source = world.known[{"sweep": "batched", "store": "run"}.get(kind, kind)].folder
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    # Files that are names of one another stay so.
    subprocess.run(["cp", "-a", source, place], check=True)
    return place


def look_at_run(place: Path) -> list[tuple[Ended, Any]]:
    """What a finished run answers: measures, probabilities, a report, and as another run's beginning."""
    measured = command(place, "evaluate", "run", "--out", "found.json")
    predicted = command(place, "predict", "run", "images", "--out", "answers.csv", "--top", "3")
    report = command(place, "report", "run")
    next_run = ("train", *BASE, "freeze=through:conv5", "head=keep", "weights=run", "optimizer.lr=1e-12")
    begun = command(place, *next_run, "epochs=1", "hydra.run.dir=next")
    return [
        (measured, _held(place / "found.json", lambda file: json.loads(file.read_text(encoding="utf-8")))),
        (predicted, _held(place / "answers.csv", rows_of)),
        (report, None),
        (begun, _held(place / "next" / "summary.json", lambda file: measures_of(file.parent))),
    ]


def look_at_half(place: Path) -> list[tuple[Ended, Any]]:
    """What an interrupted run comes to."""
    ended = command(place, "resume", "run")
    if ended.code:
        return [(ended, None)]
    try:
        return [(ended, came_to(place / "run"))]
    except (RequestError, RunError) as error:  # it ended, and whoever opens it will be told
        return [(replace(ended, code=1, err=str(error)), None)]


def look_at_sweep(place: Path) -> list[tuple[Ended, Any]]:
    """What a finished sweep's leaderboard has."""
    names = ("rank", "n", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "jobs")
    ended = command(place, "leaderboard", "sweep")
    return [(ended, _held(place / "sweep" / "leaderboard.csv", lambda file: rows_of(file, *names)))]


def look_at_store(place: Path) -> list[tuple[Ended, Any]]:
    """What a run with these features comes to."""
    ended = command(place, *RUN[:-1], "hydra.run.dir=again")
    return [(ended, _held(place / "again" / "summary.json", lambda file: measures_of(file.parent)))]


def _held(file: Path, read: Callable[[Path], Any]) -> Any:
    return read(file) if file.exists() else None


def measures_of(run: Path) -> Any:
    summary = summary_of(run)
    return [summary["val"], summary["test"], summary["classes"], summary["data"]["fingerprint"]]


def _subject(kind: str, place: Path, chance: Random, curves: bool) -> Path:
    """A file of that kind of folder, large ones three times as likely; of a sweep what tells of its jobs."""
    folder = place / {"run": "run", "half": "run", "sweep": "sweep", "store": "store"}[kind]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    if kind == "sweep":
        files = [path for path in files if path.suffix in (".json", ".yaml")]
    files = [path for path in files if any(one in path.parts for one in CURVES) == curves]
    weights = [3 if path.stat().st_size > 50_000 else 1 for path in files]
    return chance.choices(files, weights)[0]


KINDS: dict[str, tuple[Look, float]] = {
    "run": (look_at_run, 0.4),
    "half": (look_at_half, 0.25),
    "sweep": (look_at_sweep, 0.1),
    "store": (look_at_store, 0.25),
}


def flips(world: World, place: Path, chance: Random, number: int, curves: bool = False) -> Outcome:
    """One bit of one file is flipped; what reads it then ends with the same answers, or with a word."""
    kind = "half" if curves else chance.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    _copied(world, kind, place)
    file = _subject(kind, place, chance, curves)
    content = bytearray(file.read_bytes())
    # Small values stand at the beginning of large texts, whose rest is digests.
    reach = min(len(content), 3000) if chance.random() < 0.5 else len(content)
    offset, bit = chance.randrange(reach), chance.randrange(8)
    content[offset] ^= 1 << bit
    with file.open("r+b") as opened:  # in place: for all names that the file has
        opened.write(content)
    note = f"{kind}: {file.relative_to(place)} byte {offset} bit {bit}"
    return _judge(KINDS[kind][0](place), world.looks[kind], note)


def _judge(found: list[tuple[Ended, Any]], wanted: list[tuple[Ended, Any]], note: str) -> Outcome:
    kinds = []
    for (ended, answer), (before, right) in zip(found, wanted, strict=True):
        if ended.broken:
            return Outcome("broken", f"{note}: {ended.err.strip().splitlines()[-1]}")
        usual = {line for text in (before.out, before.err) for line in text.splitlines()}
        new = [line for text in (ended.out, ended.err) for line in text.splitlines() if line not in usual]
        told = [line for line in new if WORDS.search(line)]
        if ended.code == 0 and answer != right and not told:
            return Outcome("silent", f"{note}: {_what(answer, right)}")
        kinds.append("told" if ended.code or told else "equal")
        if ended.code == 0 and answer != right:
            note += f" (told: {told[0]})"
    return Outcome("told" if "told" in kinds else "equal", note)


def _what(answer: Any, right: Any) -> str:
    if isinstance(answer, dict) and isinstance(right, dict):
        return "other " + ", ".join(key for key in right if answer.get(key) != right[key])
    return f"{str(answer)[:80]!r} for {str(right)[:80]!r}" if isinstance(answer, str) else "other answers"
