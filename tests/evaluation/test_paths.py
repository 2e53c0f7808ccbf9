"""What PATH… means."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from finetune.errors import RequestError
from finetune.evaluation.paths import find_images

FILES = ("a/1.png", "a/b/2.JPG", "a/b/notes.txt", "a/.hidden/3.png", "c/[4].png", "c/5.webp")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], ["a/1.png", "a/b/2.JPG"]),
        (["a/b/notes.txt"], ["a/b/notes.txt"]),
        (["c/[4].png", "c/*.webp"], ["c/[4].png", "c/5.webp"]),
        (["*"], ["a/1.png", "a/b/2.JPG", "c/5.webp", "c/[4].png"]),
        (["**/*.png"], ["a/1.png", "c/[4].png"]),
        (["c", "c/5.webp"], ["c/5.webp", "c/[4].png", "c/5.webp"]),
    ],
)
def test_files_folders_and_globs(arguments: list[str], expected: list[str]) -> None:
    found = find_images(arguments, io.StringIO())
    assert [str(path) for path in found] == expected
    assert found.total == len(expected)


def test_what_is_passed_over_is_counted_by_extension() -> None:
    Path("c/6.heic9").touch()
    assert find_images(["a", "c", "a/b/notes.txt"], io.StringIO()).passed_over == {".txt": 1, ".heic9": 1}
    Path("empty").mkdir()
    Path("empty/x.raw").touch()
    with pytest.raises(
        RequestError, match=r"expected images in this folder \(.*\); 1 file passed over: 1 .raw"
    ):
        find_images(["empty"], io.StringIO())


def test_a_list_on_stdin_is_taken_line_by_line() -> None:
    found = find_images(["c/5.webp", "-"], io.StringIO("a/1.png\n\nnowhere.png\r\n"))
    assert found.total is None
    assert [str(path) for path in found] == ["c/5.webp", "a/1.png", "nowhere.png"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("nowhere.png", "nowhere.png: expected a file, a folder, a glob or -; there is no such file"),
        ("c/*.gif", "c/.*.gif: expected a file, a folder, a glob or -; there is no such file"),
        ("a/.hidden/..", None),
        ("empty", "empty: expected images in this folder"),
    ],
)
def test_what_names_nothing_is_told(argument: str, line: str | None) -> None:
    Path("empty").mkdir()
    if line is None:
        assert find_images([argument], io.StringIO()).total == 2
    else:
        with pytest.raises(RequestError, match=f"^{line}"):
            find_images([argument], io.StringIO())
