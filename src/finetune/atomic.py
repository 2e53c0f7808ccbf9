"""Files that are whole or absent."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from uuid import uuid4

from finetune.errors import FULL, RequestError, RunError

PART = ".part"


def is_ours(error: OSError, *folders: Path) -> bool:
    """Whether an error is of a file in a run's folders, or of a full disk; else of what other code reads."""
    if error.errno in FULL:
        return True
    if not isinstance(error.filename, str | Path):  # a number or bytes, as somebody else's code has it
        return False
    file = Path(os.path.abspath(error.filename))
    return any(file.is_relative_to(folder.absolute()) for folder in folders)


def not_written(place: Path, error: OSError) -> str:
    """What to say of an error of the system while a file at or below a place was written."""
    return f"{os.fsdecode(error.filename or place)}: cannot be written: {error.strerror}"


def write_atomically(target: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write beside the target, sync to disk, then take its place: a reader finds the old file or the new one.

    content: the bytes, or what writes them into an open file.
    RunError: the file cannot be written; the old one stays.
    """
    _remove_unfinished(target.parent)
    part, file = _begin(target)
    try:
        with file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)
    except (OSError, RuntimeError) as error:
        # torch puts an error of its own before the system's, which says why.
        system = error if isinstance(error, OSError) else error.__context__
        raise RunError(f"{target}: cannot be written: {getattr(system, 'strerror', error)}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def make_out(folder: Path) -> None:
    """Make the folder that `--out` means; RequestError where it cannot be, or be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        if folder.is_dir():
            raise RequestError(f"--out={folder}: cannot be written to: {error.strerror}") from None
        raise RequestError(f"--out={folder}: cannot be made: {error.strerror}") from None


def check_out(option: str, file: Path) -> None:
    """Raise RequestError where a file, as an option names it, cannot be written; before any work."""
    if file.is_dir():
        raise RequestError(f"{option}{file}: expected a file; this is a folder")
    try:
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise RequestError(f"{option}{file}: cannot be written: {error.strerror}") from None


def part_of(target: Path, ending: str = "") -> Path:
    """A file beside the target whose name is new, and no longer than a name may be."""
    return target.with_name(f".{uuid4().hex}{ending}")


def _begin(target: Path) -> tuple[Path, BinaryIO]:
    """A new file that has a lock; one that another process removed before it had is begun again.

    RunError: it cannot be made.
    """
    while True:
        part = part_of(target, PART)
        try:
            file = part.open("xb")
        except OSError as error:
            raise RunError(f"{target}: cannot be written: {error.strerror}") from None
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            return part, file
        file.close()


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder; who still writes has a lock."""
    for part in folder.glob(f".{'[0-9a-f]' * 32}{PART}"):
        with suppress(OSError):
            if part.is_file():
                with part.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()


def sha256_of(value: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that `read_json` gives back only as it was written."""
    write_json(path, {**value, "sha256": sha256_of(value)})


def write_json(path: Path, value: Any) -> None:
    """Write a file of indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode("utf-8", "backslashreplace"))  # as JSON has surrogates


def read_json(file: Path, what: str, way: str | None = None) -> dict[str, Any]:
    """The JSON object in a file, without the SHA-256 that `write_sealed` put into it.

    what: it is, to say so where it is not. way: what can be done without the file.
    RequestError: it cannot be read, is something else, or has been changed.
    """
    expected, way = f"{file}: expected {what}", f"; {way}" if way else ""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{expected} ({error}){way}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{expected} (a JSON object){way}")
    sha256 = value.pop("sha256", None)  # older files have none
    if sha256 not in (None, sha256_of(value)):
        raise RequestError(f"{expected} as it was written; it has been changed since (SHA-256){way}")
    return value


def holds(value: Mapping[str, Any], kinds: Mapping[str, Any] | None) -> bool:
    """Whether there are such keys, each with a value of such a type; never where `kinds` is None."""
    return kinds is not None and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def linked(source: Path, target: Path) -> bool:
    """Give a file a second name, in place of what had it; False on file systems where files have only one."""
    part = part_of(target, PART)
    try:
        part.hardlink_to(source)
        part.replace(target)
    except OSError:
        return False
    finally:
        with suppress(OSError):  # renaming one name of a file to another of the same file leaves both
            part.unlink()
    return True
