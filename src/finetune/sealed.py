"""Checkpoints that end with the SHA-256 of themselves, so that no changed bit goes unnoticed."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from finetune.atomic import write_atomically

MARK = b"sha256:"
LENGTH = len(MARK) + 64


class Plain:
    """In the place of a value beside tensors that nothing here reads; takes whatever it is made of."""

    __init__ = __setstate__ = lambda self, *args: None


# What trainings store beside their weights. None of it is imported, so that no bytes can misuse it.
ARRAYS = [f"{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
NUMPY = [f"numpy.{name}" for name in ("dtype", "ndarray", *ARRAYS)]
PATHS = [
    f"pathlib{local}.{kind}Path" for local in ("", "._local") for kind in ("Posix", "Windows", "PureWindows")
]
PLAIN: list[Any] = [(Plain, name) for name in ("argparse.Namespace", *NUMPY, *PATHS)]


class WrongDigest(ValueError):
    """A checkpoint that is no longer what was written."""


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically what `torch.load` reads, the digest as its archive's comment; or raise RunError."""
    file = io.BytesIO()
    torch.save({**content, "sealed": True}, file)
    file.seek(-2, os.SEEK_END)  # where a zip archive without a comment has the length of it
    file.write(LENGTH.to_bytes(2, "little"))
    file.write(MARK + hashlib.sha256(file.getbuffer()).hexdigest().encode())
    write_atomically(path, file.getvalue())


def read_checkpoint(path: Path) -> Any:
    """What a file of torch.save holds, as plain data.

    WrongDigest: it has been changed.
    Exception: it is no such file; there is no telling what foreign bytes make an unpickler raise.
    """
    changed = WrongDigest(f"{path} has been changed since it was written (SHA-256)")
    source: Path | io.BytesIO = path
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - LENGTH))
        sealed = file.read(len(MARK)) == MARK
        if sealed:
            file.seek(0)
            whole = file.read()  # what is loaded are the bytes that were checked
            source = io.BytesIO(whole)
            found = hashlib.sha256(memoryview(whole)[:-LENGTH]).hexdigest()
            if found.encode() != whole[-64:]:
                raise changed
    if not sealed:
        _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's note on a pickle that it then refuses
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and content.pop("sealed", False) and not sealed:  # its end is missing
        raise changed
    return content


def _check_archive(path: Path) -> None:
    """Raise WrongDigest for a zip archive with changed bytes: torch does not look at its checksums."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04" and (changed := zipfile.ZipFile(file).testzip()):
            raise WrongDigest(f"{changed} in it is not what was written (CRC-32)")
