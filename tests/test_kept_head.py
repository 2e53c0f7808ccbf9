"""A run that keeps the head of another takes over its classes, by their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.ended import Ended
from support.runs import summary_of

GOLDEN = Path(__file__).parent / "golden"
STILL = (
    *("data=folder", "data.root=some", "data.image_size=32", "cache=memory", "precision=32", "trainer=cpu"),
    *("model=shufflenet_v2_x0_5", "weights=first", "head=keep", "freeze=[all,-fc]"),
    *("optimizer.lr=1e-12", "epochs=1", "hydra.run.dir=second"),
)

Command = Callable[..., Ended]


@pytest.mark.slow
def test_some_of_the_classes_keep_their_names_and_others_are_told(command: Command) -> None:
    """A head that as good as stands still is worth what it was."""
    shutil.copytree(GOLDEN / "runs" / "all", "first")
    Path("some").mkdir()
    for name in ("fruit", "mammal"):  # for the head the second and the third of three
        (Path("some") / name).symlink_to(GOLDEN / "images" / name)
    ended = command("train", *STILL)
    assert ended.code == 0, ended.err
    second = summary_of(Path("second"))
    assert second["classes"] == ["electronics", "fruit", "mammal"]
    words = ("evaluate", "first", *STILL[:2], "--split", "test", "--raw", "--out", "found.json")
    assert command(*words).code == 0
    found = json.loads(Path("found.json").read_text())
    assert second["test"]["accuracy"] == found["accuracy"]
    assert second["test"]["loss"] == pytest.approx(found["log_loss"], abs=1e-3)
    Path("second/summary.json").unlink()
    assert command("resume", "second").code == 0
    assert summary_of(Path("second"))["test"] == second["test"]
    (Path("some") / "teal").symlink_to(GOLDEN / "images" / "electronics")
    ended = command("train", *STILL[:-1])
    assert ended.code == 2
    assert ended.err.endswith(
        "error: head=keep: expected classes that weights=first know (electronics, fruit, mammal), not teal;"
        " head=auto makes a new head\n"
    )
