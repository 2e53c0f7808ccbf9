"""What PATH… means."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune.errors import RequestError
from finetune.evaluation.paths import find_images
from support.typed import typed

FILES = ("a/1.png", "a/b/2.JPG", "a/b/notes.txt", "a/.hidden/3.png", "c/[4].png", "c/5.webp")


def data(**settings: str) -> Any:
    """These settings of a run's data."""
    return SimpleNamespace(**settings)


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
        (["a/**"], ["a/1.png", "a/b/2.JPG"]),
        (["./a/**", "c/**"], ["a/1.png", "a/b/2.JPG", "c/5.webp", "c/[4].png"]),
        (["**"], ["a/1.png", "a/b/2.JPG", "c/5.webp", "c/[4].png"]),
        (["a/**/*"], ["a/1.png", "a/b/2.JPG"]),
        (["c", "c/5.webp"], ["c/5.webp", "c/[4].png", "c/5.webp"]),
    ],
)
def test_files_folders_and_globs(arguments: list[str], expected: list[str]) -> None:
    found = find_images(arguments, typed())
    assert [str(path) for path in found] == expected
    assert found.total == len(expected)


def test_what_is_passed_over_is_counted_by_extension() -> None:
    Path("c/6.heic9").touch()
    assert find_images(["a", "c", "a/b/notes.txt"], typed()).passed_over == {".txt": 1, ".heic9": 1}
    Path("empty").mkdir()
    Path("empty/x.raw").touch()
    with pytest.raises(
        RequestError, match=r"expected images in this folder \(.*\); 1 file passed over: 1 .raw"
    ):
        find_images(["empty"], typed())


def test_a_list_on_stdin_is_taken_line_by_line() -> None:
    found = find_images(["c/5.webp", "-"], typed(b"a/1.png\n\nnowhere.png\r\n"))
    assert found.total is None
    assert [str(path) for path in found] == ["c/5.webp", "a/1.png", "nowhere.png"]


@pytest.mark.parametrize(
    "content",
    [
        b"a/1.png\0two\nlines.png\0",
        b"a/1.png\0two\nlines.png",
        b"\xef\xbb\xbfa/1.png\0two\nlines.png\0",
        "\ufeffa/1.png\0two\nlines.png\0".encode("utf-16-le"),
    ],
)
def test_a_list_may_be_parted_by_zero_bytes_and_have_a_mark(content: bytes) -> None:
    assert [str(path) for path in find_images(["-"], typed(content))] == ["a/1.png", "two\nlines.png"]


def test_a_name_before_a_zero_byte_is_taken_as_it_is() -> None:
    found = find_images(["-"], typed(b"a\nb.png\0c\r\nd\re.png\0"))
    assert [str(path) for path in found] == ["a\nb.png", "c\r\nd\re.png"]


def test_the_names_in_a_list_are_of_any_bytes() -> None:
    (path,) = find_images(["-"], typed(b"\xe4.png\n"))
    assert os.fsencode(str(path)) == b"\xe4.png"


def test_a_table_stands_for_its_images() -> None:
    Path("labels.csv").write_text("name;x\n1;a\nx/a/b/2;b\ngone;c\n")
    found = find_images(["labels.csv", "c/5.webp"], typed(), data(image_column="name"))
    assert [str(path) for path in found] == ["a/1.png", "a/b/2.JPG", "gone", "c/5.webp"]
    assert found.total == 4
    with pytest.raises(RequestError, match=r"^labels.csv: expected a column path .*; there are name, x$"):
        find_images(["labels.csv"], typed())


def test_a_table_is_read_as_the_runs_was() -> None:
    Path("t.csv").write_bytes("path,läbel\n1,a\nb/2,b\n".encode("cp1252"))
    found = find_images(["t.csv"], typed(), data(image_folder="a", image_suffix=".png"))
    assert [str(path) for path in found] == ["a/1.png", "a/b/2.png"]
    assert found.warnings == [
        "t.csv: the table is not in UTF-8: read as cp1252, as Windows writes it",
        "t.csv: its paths start at a, as the run's did",
    ]
    elsewhere = find_images(["t.csv"], typed(), data(image_folder="gone"))
    assert [str(path) for path in elsewhere] == ["a/1.png", "b/2"]
    assert elsewhere.warnings[1:] == [
        "t.csv: no path in it is a file; found 1 of 2 images by the ends of their paths below ."
    ]


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
        assert find_images([argument], typed()).total == 2
    else:
        with pytest.raises(RequestError, match=f"^{line}"):
            find_images([argument], typed())
