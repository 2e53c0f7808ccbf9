"""SHA-256 of picture files, remembered by path, size and time of change."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

SETTLED_NS = 2_000_000_000  # a file changed a moment ago may change again within the clock's grain
TABLE = "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 TEXT)"


def file_digests(paths: Sequence[Path], memo: Path | None) -> list[str]:
    """SHA-256 of each file's bytes; of its name where it is none or cannot be read, which decoding reports.

    memo: an SQLite file that remembers them, shared by all runs; files are read only when new or changed.
    None, or where it cannot be used: every file is read.
    """
    if memo is None:
        return _read(paths)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(memo, timeout=30)) as base, base:
            base.execute(TABLE)
            return _remembered(paths, base)
    except (OSError, sqlite3.Error):
        return _read(paths)


def _remembered(paths: Sequence[Path], base: sqlite3.Connection) -> list[str]:
    found: dict[int, str] = {}
    facts = [_facts(path) for path in paths]
    query = "SELECT sha256 FROM digests WHERE path = ? AND size = ? AND mtime_ns = ?"
    for i, fact in enumerate(facts):
        if fact and (row := base.execute(query, fact).fetchone()):
            found[i] = row[0]
    new = [i for i in range(len(paths)) if i not in found]
    found |= dict(zip(new, _read([paths[i] for i in new]), strict=True))
    before = time.time_ns() - SETTLED_NS
    rows = [
        (*fact, found[i]) for i in new if (fact := facts[i]) and fact[2] < before and fact == _facts(paths[i])
    ]
    base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
    return [found[i] for i in range(len(paths))]


def _facts(path: Path) -> tuple[str, int, int] | None:
    try:
        real = path.resolve()
        stat = real.stat()
        return str(real), stat.st_size, stat.st_mtime_ns
    except (OSError, RuntimeError):  # RuntimeError: links that go round
        return None


def _read(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    with suppress(OSError):
        if path.is_file():  # a named pipe would be waited for
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(str(path).encode()).hexdigest()
