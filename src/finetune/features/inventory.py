"""What the folder of features holds, and how it is emptied: what `finetune cache` does."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from finetune.atomic import read_json
from finetune.errors import RequestError, RunError, brief, counted
from finetune.features.store import bytes_of, entries_in, key, lock_store, remove_store, store_folder


def _folders(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "features").glob("*") if path.is_dir())


def count_stored(cache: Path, about: dict[str, Any], digests: set[str]) -> int:
    """How many of these images have a row in a store or in a part that it will take in."""
    name = store_folder(cache, about).name
    stored = [_digests(folder) for folder in _folders(cache) if folder.name.startswith(name)]
    return len(digests & set[str]().union(*stored))


def _digests(folder: Path) -> set[str]:
    index = folder / "index.bin"
    entries = entries_in(index.read_bytes() if index.is_file() else b"")
    return {digest.tobytes().hex() for digest in entries["digest"] if digest.any()}


def size_of_all(cache: Path) -> int:
    return sum(map(bytes_of, _folders(cache)))


def contents(cache: Path) -> list[dict[str, Any]]:
    """What each store holds: number of rows, bytes and its description, without this where it is damaged."""
    found = []
    for folder in _folders(cache):
        rows = len(_digests(folder))
        found.append({"folder": str(folder), "rows": rows, "bytes": bytes_of(folder), **_about(folder)})
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = read_json(folder / "about.json", "what a store holds")
    except RequestError:
        return {}
    decides = {name: value for name, value in about.items() if name != "row"}
    return about if key(decides)[:32] == folder.name[:32] else {}


def clear(cache: Path) -> tuple[int, list[str]]:
    """Remove every store that nobody holds; returns the bytes set free, and which are left and why."""
    freed, left = 0, []
    for folder in _folders(cache):
        try:
            with ExitStack() as stack:
                lock_store(stack, cache, folder)
                held = bytes_of(folder)
                remove_store(folder)
                freed += held
        except BlockingIOError:
            left.append(f"{folder} is in use")
        except OSError as error:
            left.append(f"{error.filename or folder}: {error.strerror}")
        except RequestError as error:
            left.append(str(error))
    return freed, left


def list_store(folder: Path, screen: Console) -> None:
    held = contents(folder)
    for one in held:
        what = f"{one['folder']}: about.json is damaged or another version's"
        if "row" in one:
            shapes = " + ".join("x".join(map(str, shape)) for shape in one["row"])
            what = (
                f"{counted(one['rows'], 'image'):>16}  {one['model']} at {', '.join(one['boundary'])}"
                f" ({shapes}, {one['dtype']}, {one['view']})  {one['folder']}"
            )
        screen.print(f"{decimal(one['bytes']):>9}  {what}")
    screen.print(f"{decimal(size_of_all(folder))} in {len(held)} sets of features in {folder}")


def clear_store(folder: Path, screen: Console) -> None:
    """Remove all stored features; RunError where some stay."""
    freed, left = clear(folder)
    screen.print(f"{decimal(freed)} removed from {folder}")
    if left:
        raise RunError(f"cache_dir: {len(left)} sets of features cannot be removed: {brief(left)}")
