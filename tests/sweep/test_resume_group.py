"""Groups of a sweep that were killed go on as groups, and end as they would have without."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from support.ended import Ended
from support.killed import at_checkpoint
from support.processes import Started
from support.runs import SMALL, checkpoint, summary_of

Command = Callable[..., Ended]


@pytest.fixture
def knobs(few_pictures: Path, small_weights: str, tmp_path: Path) -> list[str]:
    (tmp_path / "pictures").symlink_to(few_pictures)
    return [
        *("data=folder", "data.root=pictures", "data.image_size=32", small_weights, SMALL),
        *("epochs=5", "batch_size=16", "trainer=cpu", "cache_dir=store"),
    ]


def kill(call: int, *arguments: str) -> None:
    """Train until a group begins to write its checkpoint of that number."""
    ended = Started("train", "-m", *arguments, work=partial(at_checkpoint, call)).ended()
    assert ended.code == -signal.SIGKILL, ended.err


def points(job: Path) -> list[tuple[str, int]]:
    """Tag and step of every point in a job's TensorBoard log, as the files have them."""
    events = [
        e
        for path in sorted((job / "tensorboard").rglob("events.*"))
        for e in EventFileLoader(str(path)).Load()
    ]
    found = sorted((value.tag, event.step) for event in events for value in event.summary.value)
    return [one for one in found if not one[0].startswith("images/")]  # once for the jobs that train together


def assert_ended_alike(job: Path, whole: Path) -> None:
    for name in ("best", "last"):
        ours, theirs = checkpoint(job, name), checkpoint(whole, name)
        for key in ("epoch", "global_step", "together", "frozen_sha256"):
            assert ours[key] == theirs[key]
        torch.testing.assert_close(ours["state_dict"], theirs["state_dict"], rtol=0, atol=0)
        states = [one["optimizer_states"][0]["state"] for one in (ours, theirs)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert (job / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    found = points(job)
    assert found == points(whole)
    assert len(found) == len(set(found))
    ours, theirs = summary_of(job), summary_of(whole)
    for key in ("status", "val", "test", "best_epoch", "epochs", "steps"):
        assert ours[key] == theirs[key]
    assert not [path for path in job.rglob(".*") if path.is_file() and ".hydra" not in path.parts]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "grid"),
    [
        # one after the other: a kill in the midst of an epoch's checkpoints leaves jobs at two epochs
        (10, ("optimizer.lr=0.1", "optimizer.momentum=0,0.9", "seed=0,1", "schedule=cosine")),
        pytest.param(
            *(8, ("optimizer=adamw", "optimizer.lr=0.01,0.003", "seed=0,1", "schedule=onecycle")),
            marks=pytest.mark.slow,
        ),
        pytest.param(7, ("optimizer.lr=0.5,1e-7", "seed=0,1", "patience=1"), marks=pytest.mark.slow),
    ],
)
def test_a_killed_group_ends_as_one_that_was_not(
    command: Command, knobs: list[str], call: int, grid: tuple[str, ...]
) -> None:
    assert command("train", "-m", *knobs, *grid, "hydra.sweep.dir=whole").code == 0
    kill(call, *knobs, *grid, "hydra.sweep.dir=cut")
    ended = command("resume", "latest")
    assert (ended.code, ended.err) == (0, "")
    assert "resume   after epoch " in ended.out
    jobs = sorted(path.parent.parent.name for path in Path("whole").glob("*/checkpoints/last.ckpt"))
    for job in jobs:
        assert_ended_alike(Path("cut") / job, Path("whole") / job)
    assert command("resume", "cut").out.startswith("done     every job of cut has finished")


@pytest.mark.slow
def test_what_has_changed_or_is_damaged_is_refused(command: Command, knobs: list[str]) -> None:
    kill(8, *knobs, "seed=0,1,2", "hydra.sweep.dir=cut")
    damaged = Path("cut/1/checkpoints/last.ckpt")
    damaged.unlink()
    damaged.write_bytes(b"no checkpoint")
    ended = command("resume", "cut")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert ended.err.startswith(f"error: job 1 (seed=1): {damaged}: is missing or damaged")
    assert [Path(f"cut/{job}/summary.json").exists() for job in range(3)] == [True, False, True]
    (Path("cut/0/summary.json")).write_text(json.dumps({"status": "interrupted", "reason": ""}))
    root = Path("pictures").resolve()
    Path("pictures").unlink()
    for path in root.rglob("*.png"):
        (copy := Path("pictures") / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    Image.new("RGB", (32, 32)).save("pictures/blue/0.png")
    before = checkpoint(Path("cut/0"), "last")
    ended = command("resume", "cut")
    assert ended.code == 1
    assert "error: job 0 (seed=0): data: the images, their labels or their split (SHA-256)" in ended.err
    assert checkpoint(Path("cut/0"), "last")["epoch"] == before["epoch"]
