"""Runs that were interrupted go on, and end as they would have without."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ended import Ended
from PIL import Image
from runs import CHECKOUT, checkpoint, summary_of, whole_state
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

Command = Callable[..., Ended]
KILLED = CHECKOUT / "tests" / "killed.py"
RUN = (
    "data=folder",
    "data.root=pictures",
    "data.image_size=32",
    "weights=random",
    "freeze=through:layer2",
    "head_dropout=0.3",
    "epochs=4",
    "batch_size=32",
    "hydra.run.dir=run",
)


@pytest.fixture(scope="session")
def many_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three colours, 210 pictures, so that features take several batches."""
    root = tmp_path_factory.mktemp("many") / "pictures"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for number in range(70):
            pixels = generator.integers(0, 200, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 20
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def pictures(many_pictures: Path, tmp_path: Path) -> None:
    """`pictures` in the working directory of each test."""
    (tmp_path / "pictures").symlink_to(many_pictures)


def points(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of every point in a run's TensorBoard log, as the files have them."""
    paths = sorted((folder / "tensorboard").iterdir())
    events = [event for path in paths for event in EventFileLoader(str(path)).Load()]
    return sorted((value.tag, event.step) for event in events for value in event.summary.value)


def assert_ended_alike(run: Path, whole: Path) -> None:
    for name in ("best", "last"):
        assert checkpoint(run, name)["epoch"] == checkpoint(whole, name)["epoch"]
        a, b = whole_state(run, name), whole_state(whole, name)
        assert a.keys() == b.keys()
        assert all(value.equal(b[key]) for key, value in a.items())
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    found = points(run)
    assert found == points(whole)
    assert len(found) == len(set(found))
    a, b = summary_of(run), summary_of(whole)
    for key in ("status", "val", "test", "best_epoch", "epochs", "steps", "data", "augment", "precision"):
        assert a[key] == b[key]
    left = [path for path in run.rglob(".*") if path.is_file() and ".hydra" not in path.parts]
    assert left == []


def killed(
    folder: Path, phase: str, call: int, delay: float, *arguments: str, number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, in a folder of its own, with a feature store of its own."""
    folder.mkdir(exist_ok=True)
    if not (folder / "pictures").exists():
        (folder / "pictures").symlink_to(Path("pictures").resolve())
    command = [sys.executable, KILLED, phase, str(call), f"{delay}", str(int(number)), *arguments]
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


# killed


@pytest.mark.parametrize(
    ("phase", "call", "delay"), [("extraction", 2, 0.0), ("epoch", 4, 0.1), ("checkpoint", 3, 0.001)]
)
def test_a_killed_run_ends_as_one_that_was_not(
    command: Command, tmp_path: Path, phase: str, call: int, delay: float
) -> None:
    assert command("train", *RUN, "cache_dir=cache").code == 0
    ended = killed(tmp_path / "cut", phase, call, delay, "train", *RUN, "cache_dir=cache")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    os.chdir("cut")
    ended = command("resume", "run")
    assert (ended.code, ended.err) == (0, "")
    os.chdir("..")
    assert_ended_alike(Path("cut/run"), Path("run"))


@pytest.mark.slow
def test_twenty_kills(command: Command, tmp_path: Path) -> None:
    """At random moments of every phase, each with a feature store of its own; some twice, as luck has it."""
    assert command("train", *RUN, "cache_dir=cache").code == 0
    chance, table = random.Random(0), []
    most = {"extraction": 4, "epoch": 20, "validation": 4, "checkpoint": 4, "test": 1}
    for number in range(20):
        phase = list(most)[number % len(most)]
        call, delay = chance.randint(1, most[phase]), chance.choice([0, 0.001, 0.01, 0.1]) * chance.random()
        folder = tmp_path / f"cut{number}"
        ended = killed(folder, phase, call, delay, "train", *RUN, "cache_dir=cache")
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        was = (folder / "phase").read_text().splitlines()[-1]
        os.chdir(folder)
        ended = command("resume", "run")
        os.chdir("..")
        assert (ended.code, ended.err) == (0, ""), (phase, call, delay)
        assert_ended_alike(folder / "run", Path("run"))
        at = next(
            (line for line in ended.out.splitlines() if line.startswith("resume")), "resume   from the start"
        )
        table.append(
            f"{number + 1:>2}  {phase:<10} call {call:>2} + {delay * 1000:6.2f} ms  in {was:<10}  {at}"
        )
        shutil.rmtree(folder)
    with Path("kills").open("w") as file:
        file.write("\n".join(table))
    print("\n".join(table))
    assert {line.split(" in ")[1].split()[0] for line in table} == set(most)
