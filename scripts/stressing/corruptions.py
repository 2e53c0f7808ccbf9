"""Every file that is read back, damaged in every way: told in a line that names it, mended, or harmless."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from finetune.errors import RequestError, RunError
from stressing.flips import WORDS, measures_of, stop_after_two_epochs
from stressing.forks import Ended, command
from stressing.kills import lacking
from stressing.world import BASE, GOLDEN, RUN, SWEEPS, Outcome, World, came_to, rows_of

SKIPPING = "data.bad_images=skip"  # one image is broken: skipped.csv lists it
TEXT = (".json", ".yaml", ".csv", ".txt", ".md", "")
Damage = Callable[[Path, Random], None]


def _flip(file: Path, chance: Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def _cut(file: Path, chance: Random, keep: Callable[[int], int]) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: max(0, keep(len(content)))])


def _random_bytes(file: Path, chance: Random) -> None:
    file.write_bytes(chance.randbytes(max(200, file.stat().st_size // 10)))


def _replaced(file: Path, chance: Random, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _ends_of_lines(file: Path, chance: Random) -> None:
    content = file.read_bytes()
    crlf = b"\r\n" in content
    file.write_bytes(content.replace(b"\r\n", b"\n") if crlf else content.replace(b"\n", b"\r\n"))


def _without_last_newline(file: Path, chance: Random) -> None:
    file.write_bytes(file.read_bytes().rstrip(b"\r\n"))


def _deleted(file: Path, chance: Random) -> None:
    file.unlink()


def _folder(file: Path, chance: Random) -> None:
    file.unlink()
    file.mkdir()


def _other_types(file: Path, chance: Random) -> None:
    """Values of an object, or of one in it, by others of the wrong type; the SHA-256 of older runs: none."""
    value = json.loads(file.read_text(encoding="utf-8"))
    value.pop("sha256", None)
    holder = chance.choice([value, *(one for one in value.values() if isinstance(one, dict) and one)])
    for key in chance.sample(sorted(holder), chance.choice([1, 1, len(holder)])):
        wrong = [one for one in (3, "text", [], {}, None, True) if type(one) is not type(holder[key])]
        holder[key] = chance.choice(wrong)
    file.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _fewer_keys(file: Path, chance: Random) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    value.pop("sha256", None)
    for key in chance.sample(sorted(value), chance.choice([1, len(value) // 2])):
        del value[key]
    file.write_text(json.dumps(value, indent=2), encoding="utf-8")


ANY: dict[str, Damage] = {
    "bit flipped": _flip,
    "emptied": partial(_cut, keep=lambda size: 0),
    "cut to half": partial(_cut, keep=lambda size: size // 2),
    "last bytes cut": partial(_cut, keep=lambda size: size - 10),
    "random bytes": _random_bytes,
    "deleted": _deleted,
    "replaced by a folder": _folder,
}
TEXTS: dict[str, Damage] = {
    "ends of lines": _ends_of_lines,
    "without last newline": _without_last_newline,
    **{text: partial(_replaced, text=f"{text}\n") for text in ("{}", "[]", "null", "[3, null]")},
}
OBJECTS: dict[str, Damage] = {"other types": _other_types, "fewer keys": _fewer_keys}


@dataclass(frozen=True)
class Look:
    """A command that reads, and what it answers where it ends well."""

    words: tuple[str, ...]
    answer: Callable[[Path], Any] = lambda place: None


def _rows(name: str, *columns: str) -> Callable[[Path], Any]:
    return lambda place: rows_of(place / name, *columns)


def _json(name: str) -> Callable[[Path], Any]:
    return lambda place: json.loads((place / name).read_text(encoding="utf-8"))


def _jobs(place: Path) -> Any:
    return lacking(place / "sweep", place / "whole", 8)


NEXT = ("train", *BASE, SKIPPING, "freeze=through:conv5", "head=keep", "weights=run", "optimizer.lr=1e-12")
BOARD = ("rank", "n", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "jobs")
LEADERBOARD = Look(("leaderboard", "sweep"), _rows("sweep/leaderboard.csv", *BOARD))
LOOKS = {
    "run": [
        Look(("evaluate", "run", "--out", "found.json"), _json("found.json")),
        Look(("predict", "latest", "images", "--out", "found.csv", "--top", "3"), _rows("found.csv")),
        Look(("export", "run", "--out", "found.safetensors")),
        Look(("report", "run"), lambda place: (place / "run" / "report.html").read_text(encoding="utf-8")),
        Look(("inspect", *BASE, "weights=run", "head=keep")),
        Look((*NEXT, "epochs=1", "hydra.run.dir=next"), lambda place: measures_of(place / "next")),
        Look(("resume", "run")),
    ],
    "older": [
        Look(("evaluate", "run", "--out", "found.json"), _json("found.json")),
        Look(("report", "run"), lambda place: (place / "run" / "report.html").read_text(encoding="utf-8")),
        Look(("resume", "run")),
    ],
    "half": [Look(("resume", "run"), lambda place: came_to(place / "run"))],
    "sweep": [LEADERBOARD, Look(("resume", "sweep"), _jobs)],
    "half sweep": [LEADERBOARD, Look(("resume", "sweep"), _jobs)],
    "store": [
        Look(("cache", "cache_dir=store")),
        Look((*RUN[:-1], SKIPPING, "hydra.run.dir=again"), lambda place: measures_of(place / "again")),
    ],
}
# What is read by nobody, or by people alone.
UNREAD = ("report.html", "hydra.yaml", "config.yaml", "leaderboard.csv", "leaderboard.md", ".lock")


def prepare(world: World) -> None:
    """One of each kind of folder, and what each look answers undisturbed."""
    world.images = shutil.copytree(GOLDEN / "images", world.folder / "images")
    (next(world.images.rglob("*.png")).parent / "broken.png").write_bytes(b"no image")
    before = {"half": stop_after_two_epochs, "half sweep": _stop_sweep_after_two_epochs}
    for kind in ("run", "half", "sweep", "half sweep"):
        words = (*SWEEPS["batched"], "hydra.sweep.dir=sweep") if "sweep" in kind else RUN
        place = world.furnish(f"undisturbed/{kind}")
        ended = command(place, *words, SKIPPING, before=before.get(kind, int))
        assert ended.code == (-9 if kind in before else 0), ended.err
    shutil.copytree(
        world.folder / "undisturbed" / "run", world.folder / "undisturbed" / "store", symlinks=True
    )
    older = world.furnish("undisturbed/older")
    shutil.copytree(GOLDEN / "runs" / "all", older / "run")
    (older / "images").unlink()
    (older / "images").symlink_to(GOLDEN / "images")
    for kind, looks in LOOKS.items():
        place = _copied(world, kind, world.folder / "looks" / kind)
        world.looks[f"corrupted {kind}"] = [_look(look, place) for look in looks]
        assert not any(ended.code for ended, _ in world.looks[f"corrupted {kind}"])


def _stop_sweep_after_two_epochs() -> None:
    import os
    import signal

    from finetune.training.batched_checkpoints import BatchedCheckpoints

    keep = BatchedCheckpoints.on_train_epoch_end

    def kept(self: Any, trainer: Any, module: Any) -> None:
        keep(self, trainer, module)
        if trainer.current_epoch == 1:
            self.write()
            os.kill(os.getpid(), signal.SIGKILL)

    BatchedCheckpoints.on_train_epoch_end = kept  # type: ignore[method-assign]


def _copied(world: World, kind: str, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", world.folder / "undisturbed" / kind, place], check=True)
    if "sweep" in kind:
        (place / "whole").symlink_to(world.folder / "undisturbed" / "sweep" / "sweep")
    return place


def subjects(place: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Each file of a kind of folder that something reads, and the damages that fit it; of jobs the first."""
    folder = place / {"half": "run", "older": "run", "half sweep": "sweep"}.get(kind, kind)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNREAD)
    if "sweep" in kind:
        files = [path for path in files if path.relative_to(folder).parts[0] not in "1234567"]
    if kind == "run":
        files.append(place / "outputs" / "latest")
    if kind == "older":  # without a SHA-256 nothing tells a single bit
        files = [path for path in files if path.suffix == ".json"]
    for file in files:
        damages = [
            *ANY,
            *(TEXTS if file.suffix in TEXT else ()),
            *(OBJECTS if file.suffix == ".json" else ()),
        ]
        for damage in damages:
            told = kind != "older" or (damage != "bit flipped" and file.name != "settings.json")
            if told or damage in ("emptied", "cut to half", "deleted", "replaced by a folder"):
                yield file, damage


def corruptions(world: World, place: Path, chance: Random, number: int) -> Outcome:
    """One file is damaged in one way, each having its turn; what reads it tells or mends it."""
    undisturbed = world.folder / "undisturbed"
    grid = [(kind, *one) for kind in LOOKS for one in subjects(undisturbed / kind, kind)]
    Random(world.seed).shuffle(grid)
    kind, source, damage = grid[number % len(grid)]
    _copied(world, kind, place)
    file = place / source.relative_to(undisturbed / kind)
    (ANY | TEXTS | OBJECTS)[damage](file, chance)
    about = _about(kind, source.relative_to(undisturbed / kind))
    note = f"{kind}: {file.relative_to(place)} {damage}"
    ends = []
    for look, (before, right) in zip(LOOKS[kind], world.looks[f"corrupted {kind}"], strict=True):
        ended, answer = _look(look, place)
        outcome = _judged(ended, before, file, note=f"{note}: finetune {look.words[0]}", same=answer == right)
        if outcome.kind in ("silent", "broken"):
            return replace(outcome, about=about)
        ends.append(outcome)
    told = [outcome for outcome in ends if outcome.kind == "told"]
    return replace((told or ends)[0], about=about)


def _about(kind: str, file: Path) -> str:
    """The kind of a file, by its name."""
    if "tfevents" in file.name:
        return "TensorBoard's log"
    return f"{kind}: {file.name}"


def _look(look: Look, place: Path) -> tuple[Ended, Any]:
    ended = command(place, *look.words)
    if ended.code:
        return ended, None
    try:
        return ended, look.answer(place)
    except (RequestError, RunError) as error:  # it ended, and whoever opens it will be told
        return replace(ended, code=2, err=f"error: {error}"), None


def _without_numbers(line: str) -> str:
    """Of lines that differ in a speed alone the damaged file is no cause."""
    return re.sub(r"\d[\d.,]*", "", line)


def _judged(ended: Ended, before: Ended, file: Path, *, same: bool, note: str) -> Outcome:
    """What a command made of a damaged file."""
    lines = ended.err.strip().splitlines() or ["nothing on stderr"]
    if ended.broken:
        return Outcome("broken", f"{note}: {lines[-1]}")
    if ended.code:
        errors = [line for line in lines if line.startswith("error: ")]
        if ended.code not in (1, 2) or not errors:
            return Outcome("broken", f"{note}: code {ended.code}, {lines[-1]}")
        if not all(file.name in line for line in errors):
            return Outcome("broken", f"{note}: {file.name} is not named: {errors[0]}")
        return Outcome("told", f"{note}: {errors[0]}")
    usual = {_without_numbers(line) for line in f"{before.out}\n{before.err}".splitlines()}
    new = [line for line in f"{ended.out}\n{ended.err}".splitlines() if _without_numbers(line) not in usual]
    if told := [line for line in new if WORDS.search(line)]:
        return Outcome("told", f"{note}: {told[0]}")
    return Outcome("equal" if same else "silent", f"{note}: other answers")
