"""What is known of image files: SHA-256 and extent, by path, size and time of change; which are broken."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from stat import S_ISLNK
from typing import Any, NamedTuple

import numpy as np
import PIL

from finetune import private
from finetune.data import pixels
from finetune.data.brightness import extent, extent_of
from finetune.say import Screen, say

SETTLED_NS = 2_000_000_000  # a file changed a moment ago may change again within the clock's grain
# Each row ends with a checksum of all before it. Earlier versions left tables of other columns behind, whose
# names are not used again: hashed, files, digests, broken, bad.
TABLES = (
    "CREATE TABLE IF NOT EXISTS known"
    " (path BLOB PRIMARY KEY, size INT, mtime INT, ctime INT, sha256 TEXT, extent TEXT, crc32 INT)",
    "CREATE TABLE IF NOT EXISTS undecodable"
    " (sha256 TEXT, decoders TEXT, reason TEXT, crc32 INT, PRIMARY KEY (sha256, decoders))",
)
# What SQLite reports of a file that may be whole.
PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_IO")


class Content(NamedTuple):
    """An image's content: its SHA-256 and, of more than 8 bits, its `brightness.extent`; None: unknown."""

    sha256: str
    extent: str | None = ""


def file_contents(
    paths: Sequence[Path], memo: Path | None, advance: Callable[[int], None] = lambda _: None
) -> list[Content]:
    """Each file's content; for one that is none or cannot be read, which decoding reports, that of its name.

    memo: an SQLite file that remembers them, shared by all runs; files are read only when new or changed.
    None, or where it cannot be used: every file is read. advance: called with the number of files done.
    """
    if memo is None:
        return _hash_files(paths, advance)
    folders: dict[str, str] = {}
    found = _using(memo, lambda base: _known(base, paths, folders))
    contents, facts = found or ({}, {i: _facts(path, folders) for i, path in enumerate(paths)})
    advance(len(contents))
    new = [i for i in range(len(paths)) if i not in contents]
    contents |= dict(zip(new, _hash_files([paths[i] for i in new], advance), strict=True))
    before = time.time_ns() - SETTLED_NS
    rows = [
        _row(*fact, contents[i].sha256, contents[i].extent or "")
        for i, fact in facts.items()
        if fact and contents[i].extent is not None and fact[2] < before and fact == _facts(paths[i], folders)
    ]
    _write(rows, "known", memo)
    return [contents[i] for i in range(len(paths))]


def content_digest(content: bytes | np.ndarray) -> str:
    """SHA-256 of an image's bytes, or of an array's shape, type and bytes."""
    if isinstance(content, np.ndarray):
        content = f"{content.shape}{content.dtype}".encode() + content.tobytes()
    return hashlib.sha256(content).hexdigest()


def stored_content(image: bytes | np.ndarray) -> Content:
    """The same of an image that is no file."""
    known = extent(io.BytesIO(image)) if isinstance(image, bytes) else extent_of(image)
    return Content(content_digest(image), known)


def decoders() -> str:
    """The versions of what decodes images, which decides what they show and which can be read."""
    heif = ["heif " + pixels.pillow_heif.__version__] if "HEIF" in pixels.FORMATS else []
    return ", ".join([PIL.__version__, *heif])


def known_bad(digests: Sequence[str], memo: Path) -> dict[str, str]:
    """The digests of images that an earlier run could not decode, and why; with these decoders."""
    query = "SELECT * FROM undecodable WHERE decoders = ?"
    rows = _using(memo, lambda base: base.execute(query, (decoders(),)).fetchall()) or []
    reasons = {row[0]: row[2] for row in rows if row == _row(*row[:-1])}
    return {digest: reasons[digest] for digest in digests if digest in reasons}


def remember_bad(reasons: Mapping[str, str], memo: Path, among: Sequence[str] = ()) -> None:
    """Remember why images cannot be decoded, by their digests; among: of a set whose others all can."""
    whole = {_set_digest(among): "a set of images"} if among else {}
    rows = [_row(digest, decoders(), reason) for digest, reason in {**reasons, **whole}.items()]
    _write(rows, "undecodable", memo)


def were_decoded(digests: Sequence[str], memo: Path) -> bool:
    """Whether all images of this set were decoded before, but for those that are known to be broken."""
    return bool(known_bad([whole := _set_digest(digests)], memo).get(whole))


def _set_digest(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(sorted(set(digests))).encode()).hexdigest()


def forget(path: Path, memo: Path) -> None:
    """Have a file hashed again next time, in case it changed although its size and times did not."""
    query = "DELETE FROM known WHERE path = ?"
    _using(memo, lambda base: base.execute(query, (os.fsencode(path.resolve()),)))


def _row(*fields: str | bytes | int) -> tuple[str | bytes | int, ...]:
    return (*fields, zlib.crc32(repr(fields).encode()))


def _write(rows: Sequence[tuple[str | bytes | int, ...]], table: str, memo: Path) -> None:
    if rows:
        query = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(rows[0]))})"
        _using(memo, lambda base: base.executemany(query, rows))


def _using(memo: Path, use: Callable[[sqlite3.Connection], Any]) -> Any:
    """What a use of the memo returns, None where it cannot be used; one that is damaged is deleted."""
    try:
        private.make_folder(memo.parent)
        private.open_file(memo, memo.parent).close()
        with closing(sqlite3.connect(memo, timeout=30)) as base, base:
            for table in TABLES:
                base.execute(table)
            return use(base)
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        name = getattr(error, "sqlite_errorname", "")  # errors of Python's own module have none
        if memo.is_dir() or not (isinstance(error, OSError) or name.startswith(PASSING)):
            with suppress(OSError):
                memo.unlink()
            say(Screen(stderr=True), "note", f"{memo}: is damaged ({error}); every image file is read again")
        return None


def _known(base: sqlite3.Connection, paths: Sequence[Path], folders: dict[str, str]) -> tuple[Any, Any]:
    """The contents that are remembered, by index, and the facts of the other files."""
    contents: dict[int, Content] = {}
    facts: dict[int, tuple[bytes, int, int, int] | None] = {}  # of the new ones alone: there may be millions
    query = "SELECT sha256, extent, crc32 FROM known WHERE path = ? AND size = ? AND mtime = ? AND ctime = ?"
    for i, path in enumerate(paths):
        fact = _facts(path, folders)
        if fact and (row := base.execute(query, fact).fetchone()) and (*fact, *row) == _row(*fact, *row[:2]):
            contents[i] = Content(*row[:2])
        else:
            facts[i] = fact
    return contents, facts


def _facts(path: Path, folders: dict[str, str]) -> tuple[bytes, int, int, int] | None:
    """What tells whether a file has changed; a copy may keep the time of its content, not of its entry.

    folders: gets the real path of each folder, which costs more than all else.
    """
    try:
        folder, name = os.path.split(path)
        real = os.path.join(folders.get(folder) or folders.setdefault(folder, os.path.realpath(folder)), name)
        stat = os.lstat(real)
        if S_ISLNK(stat.st_mode):
            real = os.path.realpath(real)
            stat = os.stat(real)
        return os.fsencode(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    except (OSError, RuntimeError, ValueError):  # links that go round; a name with a zero byte
        return None


def _hash_files(paths: Sequence[Path], advance: Callable[[int], None]) -> list[Content]:
    contents = []
    with ThreadPoolExecutor() as pool:
        for content in pool.map(_digest, paths):
            contents.append(content)
            advance(1)
    return contents


def _digest(path: Path) -> Content:
    with suppress(OSError):
        if path.is_file():  # a named pipe would be waited for
            with path.open("rb") as file:
                return Content(hashlib.file_digest(file, "sha256").hexdigest(), extent(file))
    return Content(name_digest(path), None)


def name_digest(path: Path) -> str:
    """What stands for the digest of a file that could not be read."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()
