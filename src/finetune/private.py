"""The folders and files of the cache: this user's alone, unless they are shared on purpose."""

from __future__ import annotations

import io
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path

from finetune.errors import RequestError

TAG = "CACHEDIR.TAG"  # https://bford.info/cachedir/: backups pass over a folder with it, as we do for images
SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"


def check_folder(path: Path, shared: bool) -> None:
    """Make the cache's folder where it is missing, and refuse one that others could have filled.

    shared: others may fill it (`cache_shared=true`); a folder made now is its group's, too.
    RequestError: it is another user's, or others may write to it.
    """
    with suppress(OSError):  # whoever needs it says why it cannot be made
        _make(path, shared)
        with open_file(path / TAG, path) as file:
            file.write(SIGNATURE)
    if shared or not os.path.exists(path):
        return
    asked, status = f"cache_dir={path}: expected a folder", path.stat()
    if status.st_uid != os.geteuid():
        raise RequestError(
            f"{asked} of your own, not user {status.st_uid}'s; or cache_shared=true, to trust it"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RequestError(
            f"{asked} that only you can write to (chmod go-w); or cache_shared=true, to trust who else can"
        )


def make_folder(cache: Path, *names: str) -> Path:
    """A folder below the cache's, made where it is missing; raises RequestError of a link, to anywhere."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared, folder = _shared(cache), cache
    for name in names:
        folder /= name
        with suppress(FileExistsError):
            _make(folder, shared)
        if folder.is_symlink():
            raise RequestError(f"cache_dir: {folder} is a link, which is not followed; remove it")
    return folder


def open_file(path: Path, cache: Path) -> FileIO:
    """Open a file below the cache's folder to read and write, made where it is missing; else to read alone.

    RequestError: it is a link, no file, or another user's.
    """
    shared = _shared(cache)
    if path.is_symlink():  # and if it becomes one now, O_NOFOLLOW refuses
        raise RequestError(f"cache_dir: {path} is a link, which is not followed; remove it")
    flags = os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe would be waited for
    try:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600), "r+")
    except OSError:
        if not os.path.exists(path):
            raise
        file = io.FileIO(os.open(path, os.O_RDONLY | flags), "r")
    status = os.fstat(file.fileno())
    # The folder's owner is trusted: `check_folder` has seen that this is on purpose.
    mine = status.st_uid == os.geteuid() or status.st_uid == cache.stat().st_uid
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not (mine or shared):
        file.close()
        raise RequestError(f"cache_dir: {path}: expected a file of your own, of one name; remove it")
    if status.st_uid == os.geteuid() and shared and file.writable():
        os.fchmod(file.fileno(), 0o660)  # whatever the umask
    return file


def _shared(cache: Path) -> bool:
    """Whether the cache's folder is its group's; `check_folder` has seen that this is on purpose."""
    return bool(cache.stat().st_mode & stat.S_IWGRP)


def _make(folder: Path, shared: bool) -> None:
    folder.mkdir(mode=0o700, parents=True)
    if shared:
        folder.chmod(0o2770)  # what is made in it has its group
