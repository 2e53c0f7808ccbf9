"""`finetune cache` as a user types it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.features.store import Store, open_store
from support.ended import Ended
from support.privilege import without_privilege
from support.rows import LAYOUT, digests, tensors
from support.runs import SMALL, newest, summary_of

Command = Callable[..., Ended]
ABOUT = {"model": "resnet18", "boundary": ["avgpool"], "view": "plain", "dtype": "fp32"}


@pytest.fixture
def store(command: Command) -> Store:  # in the test's folder
    with open_store(Path("cache").absolute(), ABOUT, LAYOUT) as made:
        made.append(digests(1, 2), tensors(1, 2))
    return made


def test_a_store_is_listed(command: Command, store: Store) -> None:
    ended = command("cache", "cache_dir=cache")
    assert (ended.code, ended.err) == (0, "")
    what = "2 images  resnet18 at avgpool (3x2 + 4, fp32, plain)"
    assert ended.out.splitlines() == [
        f" 80 bytes          {what}  cache/features/{store.folder.name}",
        "80 bytes in 1 sets of features in cache",
    ]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[]", b'{"row": 3, "dtype": [], "model": 1}'])
def test_a_damaged_store_is_a_line_of_the_list(command: Command, store: Store, content: bytes) -> None:
    (store.folder / "about.json").write_bytes(content)
    (store.folder / "index.bin").write_bytes(b"\xff\xfe\x00" * 100)
    ended = command("cache", "cache_dir=cache")
    assert (ended.code, ended.err) == (0, "")
    folder = f"cache/features/{store.folder.name}"
    assert ended.out.splitlines()[0] == f" 80 bytes  {folder}: about.json is damaged or another version's"
    assert command("cache", "--clear", "cache_dir=cache").out == "80 bytes removed from cache\n"
    assert not store.folder.exists()


WITH = ("data=folder", "data.root=pictures", "data.image_size=32", "weights=random", SMALL, "cache_dir=cache")


def test_it_is_filled_with_what_a_run_then_finds(command: Command, few_pictures: Path) -> None:
    Path("pictures").symlink_to(few_pictures)
    asked = (*WITH, "data.augment=flip", "cache=disk")
    ended = command("cache", "--fill", *asked)
    assert (ended.code, ended.err) == (0, "")
    assert "; 120 computed in " in ended.out  # each image and its mirror image
    assert not Path("outputs").exists()
    again = command("cache", "--fill", *asked)
    assert "; all 120 were in the store; " in again.out
    assert command("train", *asked, "epochs=1", "optimizer.lr=1").code == 0
    found = summary_of(newest())["features"]
    assert (found["computed"], found["reused"]) == (0, 120)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("freeze=none", "nothing frozen comes before what trains"),
        ("cache=none", "cache=none"),
        ("cache=memory", "in memory for this run"),
        ("data.augment=standard", "data.augment=standard shows other images in every epoch"),
        ("--clear", None),
    ],
)
def test_it_is_not_filled_where_nothing_would_be_stored(
    command: Command, few_pictures: Path, asked: str, why: str | None
) -> None:
    Path("pictures").symlink_to(few_pictures)
    told = f"expected settings with which a run stores features; with these: {why}"
    ended = command("cache", "--fill", *WITH, asked)
    assert (ended.code, ended.err) == (
        2,
        f"error: --fill: {told if why else 'expected no --clear with it'}\n",
    )


def test_what_cannot_be_removed_is_said_in_one_line(command: Command, store: Store) -> None:
    store.folder.chmod(0o500)
    with without_privilege():
        ended = command("cache", "--clear", "cache_dir=cache")
    assert ended.code == 1
    assert ended.out == "0 bytes removed from cache\n"
    told = f"cache/features/{store.folder.name}/about.json: Permission denied"
    assert ended.err == f"error: cache_dir: 1 sets of features cannot be removed: {told}\n"


def test_a_store_in_use_stays_and_the_command_says_so(command: Command, store: Store) -> None:
    with open_store(Path("cache").absolute(), ABOUT, LAYOUT):
        ended = command("cache", "--clear", "cache_dir=cache")
        assert (ended.code, ended.out) == (1, "0 bytes removed from cache\n")
        assert ended.err.endswith(f"cache/features/{store.folder.name} is in use\n")
    assert command("cache", "--clear", "cache_dir=cache").out == "80 bytes removed from cache\n"


@pytest.mark.parametrize(
    "words", [("cache", "cache_dir=shut/here"), ("resume", "shut/run"), ("report", "shut/run")]
)
def test_a_folder_that_may_not_be_searched_is_told(
    command: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shut" / "here" / "features").mkdir(parents=True)
    (tmp_path / "shut").chmod(0)
    with without_privilege():
        ended = command(*words)
    (tmp_path / "shut").chmod(0o700)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "Permission denied" in ended.err
