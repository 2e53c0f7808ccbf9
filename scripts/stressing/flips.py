"""Single bits flipped in every file of a run, a sweep and a feature store: refused, told or harmless."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from stressing.forks import Ended, command
from stressing.kills import compared
from stressing.world import BASE, RUN, SWEEPS, Outcome, World, rows_of, summary_of

# What tells a user that something is not as it was.
WORDS = re.compile(
    r"warning|note |damaged|changed|missing|differ|expected|computed again|cannot|refused|older|unknown"
)
CURVES = ("metrics.csv", "tensorboard")  # what only shows how a run went
Look = Callable[[Path], list[tuple[Ended, Any]]]


def prepare(world: World) -> None:
    """A finished run with a store, the same one interrupted, and a sweep; what each answers undisturbed."""
    world.undisturbed("run", *RUN)
    world.undisturbed("batched", *SWEEPS["batched"], "hydra.sweep.dir=sweep")
    half = world.furnish("undisturbed/half/0")
    shutil.copytree(world.known["run"].folder / "store", half / "store")
    stopped = command(half, *RUN, before=_stop_after_two_epochs)
    assert stopped.code == -9, stopped.err
    for kind, (look, _) in KINDS.items():
        place = _copied(world, kind, world.folder / "undisturbed" / "looks" / kind)
        world.looks[kind] = look(place)
        for ended, _ in world.looks[kind]:
            assert ended.code == 0, ended.err


def _stop_after_two_epochs() -> None:
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
    source = {"half": world.folder / "undisturbed" / "half" / "0", "sweep": world.known["batched"].folder}
    shutil.copytree(source.get(kind, world.known["run"].folder), place, symlinks=True, dirs_exist_ok=True)
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
        (begun, _held(place / "next" / "summary.json", lambda file: _measures(file.parent))),
    ]


def look_at_half(place: Path) -> list[tuple[Ended, Any]]:
    """What an interrupted run comes to."""
    ended = command(place, "resume", "run")
    if ended.code:
        return [(ended, None)]
    whole = place.parents[1] / "undisturbed" / "run" / "2" / "run"
    if not whole.exists():
        whole = place.parents[2] / "undisturbed" / "run" / "2" / "run"
    return [(ended, compared(place / "run", whole))]


def look_at_sweep(place: Path) -> list[tuple[Ended, Any]]:
    """What a finished sweep's leaderboard has."""
    names = ("rank", "n", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "jobs")
    ended = command(place, "leaderboard", "sweep")
    return [(ended, _held(place / "sweep" / "leaderboard.csv", lambda file: rows_of(file, *names)))]


def look_at_store(place: Path) -> list[tuple[Ended, Any]]:
    """What a run with these features comes to."""
    ended = command(place, *RUN[:-1], "hydra.run.dir=again")
    return [(ended, _held(place / "again" / "summary.json", lambda file: _measures(file.parent)))]


def _held(file: Path, read: Callable[[Path], Any]) -> Any:
    return read(file) if file.exists() else None


def _measures(run: Path) -> Any:
    summary = summary_of(run)
    return [summary["val"], summary["test"], summary["classes"], summary["data"]["fingerprint"]]


def _subject(kind: str, place: Path, chance: Random) -> Path:
    """A file of that kind of folder, each as likely as any other; of a sweep what a leaderboard reads."""
    folder = place / {"run": "run", "half": "run", "sweep": "sweep", "store": "store"}[kind]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    if kind == "sweep":
        files = [path for path in files if path.suffix in (".json", ".yaml")]
    return chance.choice(files)


KINDS: dict[str, tuple[Look, float]] = {
    "run": (look_at_run, 0.4),
    "half": (look_at_half, 0.25),
    "sweep": (look_at_sweep, 0.1),
    "store": (look_at_store, 0.25),
}


def flips(world: World, place: Path, chance: Random, number: int, curves: bool = False) -> Outcome:
    """One bit of one file is flipped; what reads it then ends with the same answers, or with a word."""
    kind = chance.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    _copied(world, kind, place)
    file = _subject(kind, place, chance)
    while any(name in file.relative_to(place).parts for name in CURVES) != curves:
        file = _subject(kind := "half", place, chance) if curves else _subject(kind, place, chance)
    content = bytearray(file.read_bytes())
    # Small values stand at the beginning of large texts, whose rest is digests.
    reach = min(len(content), 3000) if chance.random() < 0.5 else len(content)
    offset, bit = chance.randrange(reach), chance.randrange(8)
    content[offset] ^= 1 << bit
    if file.stat().st_nlink > 1:  # a bit flips on the disk, for all names of the file
        with file.open("r+b") as opened:
            opened.write(content)
    else:
        file.write_bytes(content)
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
