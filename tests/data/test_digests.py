from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data import digests
from finetune.data.digests import file_contents, forget, known_bad, remember_bad

LONG_AGO = 1_600_000_000_000_000_000


def write(path: Path, content: bytes, changed: int = LONG_AGO) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(changed, changed))
    return path


def file_digests(*given: Any) -> list[str]:
    return [content.sha256 for content in file_contents(*given)]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("memo", [None, "memo.sqlite", "new/folder/memo.sqlite"])
def test_a_files_digest_is_of_its_bytes(tmp_path: Path, memo: str | None) -> None:
    paths = [write(tmp_path / name, b"the same") for name in ("a", "b")] + [tmp_path / "gone"]
    for _ in range(2):
        found = file_digests(paths, memo and tmp_path / memo)
        assert found == [sha(b"the same")] * 2 + [sha(str(tmp_path / "gone").encode())]


def test_a_known_file_is_not_read_again_and_a_changed_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = tmp_path / "memo.sqlite"
    paths = [write(tmp_path / name, name.encode()) for name in "abcd"]
    assert file_digests(paths, memo) == [sha(name.encode()) for name in "abcd"]
    digest, read = digests._digest, list[Path]()
    monkeypatch.setattr(digests, "_digest", lambda path: read.append(path) or digest(path))
    write(paths[1], b"B")  # of the same size and, as `cp -p` leaves it, with the old time
    write(paths[2], b"longer")
    assert file_digests(paths, memo) == [sha(b"a"), sha(b"B"), sha(b"longer"), sha(b"d")]
    assert sorted(read) == paths[1:3]


def test_no_flipped_bit_of_the_memo_gives_another_digest_or_reason(tmp_path: Path) -> None:
    memo = tmp_path / "memo.sqlite"
    paths = [write(tmp_path / str(number), bytes([number])) for number in range(10)]
    right = file_digests(paths, memo)
    remember_bad({digest: f"cut off after {digest[:9]} bytes" for digest in right[:5]}, memo)
    whole, generator = memo.read_bytes(), np.random.default_rng(0)
    # Anywhere, and in what is read back itself: the digests and the reasons.
    places = generator.integers(0, 8 * len(whole), 60).tolist()
    places += [8 * (whole.index(digest.encode()) + 30) for digest in right]
    places += [8 * (whole.index(f"cut off after {digest[:9]}".encode()) + 1) for digest in right[:5]]
    for place in places:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        memo.write_bytes(flipped)
        assert file_digests(paths, memo) == right, place
        reasons = known_bad(right, memo)
        assert all(reason == f"cut off after {digest[:9]} bytes" for digest, reason in reasons.items()), place


def test_a_flipped_bit_costs_one_run_whatever_it_is_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, read, digest = tmp_path / "memo.sqlite", list[Path](), digests._digest
    paths = [write(tmp_path / str(number), bytes([number])) for number in range(10)]
    right = file_digests(paths, memo)
    remember_bad({right[0]: "cut off"}, memo)
    whole = memo.read_bytes()
    monkeypatch.setattr(digests, "_digest", lambda path: read.append(path) or digest(path))
    for text in ("CREATE TABLE known", "TABLE undecodable", "path BLOB", right[3], "cut off"):
        flipped = bytearray(whole)
        flipped[whole.index(text.encode()) + 2] ^= 0x80  # no letter of any text
        memo.write_bytes(flipped)
        known_bad(right, memo)
        assert file_digests(paths, memo) == right, text
        remember_bad({right[1]: "empty"}, memo)
        read.clear()
        assert file_digests(paths, memo) == right, text
        assert read == [], text
        assert known_bad(right, memo)[right[1]] == "empty", text
    assert "is damaged (" in capsys.readouterr().err


def test_a_memo_that_cannot_be_written_still_tells_what_it_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, read, done, digest = tmp_path / "memo.sqlite", list[Path](), list[int](), digests._digest
    paths = [write(tmp_path / name, name.encode()) for name in "abc"]
    file_digests(paths[:2], memo)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: connect(f"file:{path}?mode=ro", uri=True))
    monkeypatch.setattr(digests, "_digest", lambda path: read.append(path) or digest(path))
    file_digests(paths, memo, done.append)
    assert (read, sum(done), capsys.readouterr().err) == (paths[2:], 3, "")


def test_a_file_that_changed_unseen_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo, path = tmp_path / "memo.sqlite", write(tmp_path / "a", b"a")
    facts = digests._facts(path, {})
    # as on a disk that keeps no time of change
    monkeypatch.setattr(digests, "_facts", lambda path, folders: facts)
    assert file_digests([path], memo) == [sha(b"a")]
    write(path, b"b")
    assert file_digests([path], memo) == [sha(b"a")]
    forget(path, memo)
    assert file_digests([path], memo) == [sha(b"b")]


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    memo, path = tmp_path / "memo.sqlite", tmp_path / "a"
    path.write_bytes(b"1")
    moment = path.stat().st_mtime_ns
    assert file_digests([path], memo) == [sha(b"1")]
    write(path, b"2", moment)
    assert file_digests([path], memo) == [sha(b"2")]


def test_links_to_one_file_are_remembered_as_one(tmp_path: Path) -> None:
    memo, path = tmp_path / "memo.sqlite", write(tmp_path / "a", b"a")
    (tmp_path / "link").symlink_to(path)
    file_digests([tmp_path / "link", path], memo)
    assert sqlite3.connect(memo).execute("SELECT count(*) FROM known").fetchone() == (1,)


def test_what_is_broken_is_remembered_by_content_and_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = tmp_path / "memo.sqlite"
    assert known_bad([sha(b"a")], memo) == {}
    remember_bad({sha(b"a"): "cut off", sha(b"b"): "empty"}, memo)
    assert known_bad([sha(b"c"), sha(b"a")], memo) == {sha(b"a"): "cut off"}
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert known_bad([sha(b"a")], memo) == {}


def test_any_name_will_do(tmp_path: Path) -> None:
    memo, latin = tmp_path / "memo.sqlite", Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    latin.write_bytes(b"a")
    strange = [tmp_path / ("x" * 300), tmp_path / "a\0b"]
    for _ in range(2):
        found = file_digests([latin, *strange], memo)
        assert found == [sha(b"a"), *(sha(os.fsencode(path)) for path in strange)]


def test_progress_counts_every_file_once(tmp_path: Path) -> None:
    memo, done = tmp_path / "memo.sqlite", []
    paths = [write(tmp_path / name, name.encode()) for name in "abc"]
    for count in (2, 3):
        done.clear()
        file_digests(paths[:count], memo, done.append)
        assert sum(done) == count


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 50, None])
def test_a_memo_that_cannot_be_used_costs_only_time_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    memo, path = tmp_path / "memo.sqlite", write(tmp_path / "a", b"a")
    if content is None:
        memo.mkdir()
    else:
        memo.write_bytes(content)
    assert file_digests([path], memo) == [sha(b"a")]
    assert capsys.readouterr().err.startswith(f"note     {memo}: is damaged (")
    if content is not None:  # another is begun
        assert file_digests([path], memo) == file_digests([path], memo) == [sha(b"a")]
        assert capsys.readouterr().err == ""
