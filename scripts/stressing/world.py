"""What trials start from: images, folders, undisturbed runs, and what these come to."""

from __future__ import annotations

import csv
import hashlib
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from stressing.forks import Ended, Writes, command

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
BASE = (
    *("data=folder", "data.root=images", "data.image_size=32", "model=shufflenet_v2_x0_5"),
    *("weights=backbone.safetensors", "precision=32", "trainer=cpu", "batch_size=16"),
    *("cache=disk", "cache_dir=store", "optimizer.lr=0.05"),
)
RUN = ("train", *BASE, "freeze=through:stage4", "epochs=4", "hydra.run.dir=run")
DROPOUT = (*RUN, "head_dropout=0.3")  # draws random numbers, whose state a run takes up again
PHASES = (
    *("train", *BASE, "epochs=2", "hydra.run.dir=run", "refit=true", "head_features=all"),
    "phases=[{optimizer:lbfgs},{freeze:through:stage4},{freeze:@norm,optimizer.lr:1e-6}]",
)
RUNS = {"dropout": DROPOUT, "phases": PHASES}
SWEEPS = {
    "batched": ("train", "-m", *BASE, "epochs=3", "seed=0,1,2,3", "optimizer.momentum=0,0.9"),
    "basic": ("train", "-m", *BASE, "epochs=2", "seed=0,1,2", "hydra/launcher=basic"),
}
JOBS = {"batched": 8, "basic": 3}


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: whole, equal, told, silent or broken.

    note: on what it was and how to see it. about: the kind of file, where trials are counted by it.
    """

    kind: str
    note: str = ""
    about: str = ""


@dataclass(frozen=True)
class Undisturbed:
    """A command that nobody disturbed: its folder, seconds, changes, how many before training and storing."""

    folder: Path
    seconds: float
    writes: int
    planning: int
    storing: int = 0


@dataclass
class World:
    """A folder in which so many trials at once have folders of their own, with images or links to them."""

    folder: Path
    seed: int
    jobs: int = 2
    own_images: bool = False
    images: Path = GOLDEN / "images"
    known: dict[str, Undisturbed] = field(default_factory=dict)
    looks: dict[str, Any] = field(default_factory=dict)

    def furnish(self, name: str) -> Path:
        """A new folder in which commands find their images and weights."""
        place = self.folder / name
        place.mkdir(parents=True)
        (place / "backbone.safetensors").symlink_to(GOLDEN / "backbone.safetensors")
        if self.own_images:
            shutil.copytree(self.images, place / "images")
        else:
            (place / "images").symlink_to(self.images)
        return place

    def undisturbed(self, name: str, *arguments: str) -> Undisturbed:
        """The command in an empty folder, measured twice; the second folder is kept."""
        if name in self.known:
            return self.known[name]
        seconds = []
        for number in range(2):
            place, writes = self.furnish(f"undisturbed/{name}/{number}"), Writes()
            ended = command(place, *arguments, writes=writes)
            assert ended.code == 0, ended.err
            seconds.append(ended.seconds)
        counts = writes.count, writes.first, writes.storing
        self.known[name] = Undisturbed(place, statistics.mean(seconds), *counts)
        return self.known[name]


def moment(chance: Random, number: int, like: Undisturbed, seed: int) -> dict[str, Any]:
    """When to disturb the trial of that number: anywhere in time, or before a change; each has its turn."""
    if number % 2:
        return {"moment": chance.uniform(0, 1.1 * like.seconds)}
    order = Random(seed).sample(range(1, like.writes + 1), like.writes)
    if number % 4 == 0 and like.planning > 1:
        order = [one for one in order if one < like.planning]
    return {"write": order[number // 4 % len(order)]}


# what a run came to


def summary_of(folder: Path) -> dict[str, Any]:
    from finetune.runs.summary import read_summary

    return read_summary(folder) or {}


def tensors_of(value: Any) -> Any:
    """SHA-256 of every tensor in what a checkpoint holds, its place with it."""
    import torch

    found = hashlib.sha256()

    def walk(place: str, one: Any) -> None:
        if isinstance(one, torch.Tensor):
            found.update(f"{place} {one.dtype} {tuple(one.shape)}".encode())
            found.update(one.detach().contiguous().view(-1).numpy().tobytes())
        elif isinstance(one, dict):
            for key in sorted(one, key=str):
                walk(f"{place}/{key}", one[key])

    walk("", value)
    return found.hexdigest()


def points(run: Path) -> list[tuple[str, int]]:
    """Tag and step of every point in a run's TensorBoard log."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    paths = sorted((run / "tensorboard").rglob("events.*"))
    events = [event for path in paths for event in EventFileLoader(str(path)).Load()]
    return sorted((value.tag, event.step) for event in events for value in event.summary.value)


def came_to(run: Path, exactly: bool = True) -> dict[str, Any]:
    """All that a finished run answers, to be compared with another's."""
    from finetune.runs.open import open_run
    from finetune.training.checkpoint import AtomicCheckpointIO

    summary = summary_of(run)
    found = {key: summary[key] for key in ("status", "classes", "epochs", "steps", "best_epoch")}
    found["data"] = summary["data"]["fingerprint"]
    digits = 17 if exactly else 4
    for side in ("val", "test"):
        measured = summary.get(side) or {}
        measured.pop("intervals", None)
        found[side] = {key: round(value, digits) for key, value in measured.items()}
    if exactly:
        found["model"] = tensors_of(open_run(str(run)).network.state_dict())
        place = max(run.glob("phases/*"), default=run)
        last = AtomicCheckpointIO().load_checkpoint(place / "checkpoints" / "last.ckpt")
        found["last"] = tensors_of(last["state_dict"])
        found["curves"] = (run / "metrics.csv").read_text(encoding="utf-8")
        found["points"] = points(run)
        found["predictions"] = (run / "predictions.csv").read_text(encoding="utf-8")
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The names of what is not the same."""
    return ", ".join(key for key in wanted if found.get(key) != wanted[key])


def rows_of(table: Path, *names: str) -> list[tuple[str, ...]]:
    """Some columns of a table; all where none is named."""
    with table.open(newline="", encoding="utf-8") as file:
        return [tuple(row[name] for name in names or row) for row in csv.DictReader(file)]


def judged(ended: Ended, compare: Callable[[], str], same: str, note: str) -> Outcome:
    """What became of a command: `same` where it ended well and `compare` names no difference."""
    if ended.broken:
        return Outcome("broken", f"{note}: {ended.err.strip().splitlines()[-1]}")
    if ended.code:
        return Outcome("told", f"{note}: {(ended.err.strip().splitlines() or ['nothing'])[-1]}")
    if different := compare():
        return Outcome("silent", f"{note}: {different} differ")
    return Outcome(same, note)
