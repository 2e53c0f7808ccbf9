"""A run that keeps the head of another takes over its classes, by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support.ended import Ended
from support.runs import QUICK, summary_of

Command = Callable[..., Ended]
SMALL = (*QUICK, "weights=bundled", "trainer=cpu", "batch_size=16")
STILL = ("weights=first", "head=keep", "freeze=[all,-fc]", "optimizer.lr=1e-12", "epochs=1")


def test_some_of_the_classes_keep_their_names(train: Command, command: Command, few_pictures: Path) -> None:
    """A head that as good as stands still is worth what it was."""
    Path("pictures").symlink_to(few_pictures)
    Path("some").mkdir()
    for name in ("red", "green"):  # for the head the last and the second of three, here the second and first
        (Path("some") / name).symlink_to(few_pictures / name)
    first = ("freeze=all", "optimizer.lr=0.1", "epochs=10", "hydra.run.dir=first")
    assert train(*SMALL, *first).code == 0
    ended = train(*SMALL, *STILL, "data.root=some", "hydra.run.dir=second")
    assert ended.code == 0, ended.err
    second = summary_of(Path("second"))
    assert second["classes"] == ["blue", "green", "red"]
    words = ("evaluate", "first", "data.root=some", "--split", "test", "--raw", "--out", "found.json")
    assert command(*words).code == 0
    found = json.loads(Path("found.json").read_text())
    assert second["test"]["accuracy"] == found["accuracy"] > 0.5
    Path("second/summary.json").unlink()
    assert command("resume", "second").code == 0
    assert summary_of(Path("second"))["test"] == second["test"]
    assert command("evaluate", "second").code == 0


def test_a_class_that_the_head_does_not_know_is_told(train: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    Path("other").mkdir()
    for name, theirs in (("red", "red"), ("teal", "green")):
        (Path("other") / name).symlink_to(few_pictures / theirs)
    assert train(*SMALL, "epochs=1", "max_steps=1", "hydra.run.dir=first").code == 0
    ended = train(*SMALL, *STILL, "data.root=other")
    assert (ended.code, ended.err) == (
        2,
        "error: head=keep: expected classes that weights=first know (blue, green, red), not teal; head=auto"
        " makes a new head\n",
    )
