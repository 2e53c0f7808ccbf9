"""WebDataset shards: .tar files of pictures, each with its label beside it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from finetune.data.dataset import Picture, Stored
from finetune.data.images import EXTENSIONS
from finetune.data.sources.found import SIDES, Found, Progress, brought, existing_folder, numbered
from finetune.errors import RequestError, brief


def find(root: str, memo: Path | None, progress: Progress) -> Found:
    """The samples of every shard in a folder, the text of `.cls` as label.

    Shards named train-…, val-… and test-… are these sides. Pictures stay in their shard until decoded.

    Raises:
        RequestError: `webdataset` is not installed, there are no shards, or one is damaged or lacks a label.
    """
    if not importlib.util.find_spec("webdataset"):
        raise RequestError(
            "data=webdataset: expected the package webdataset: pip install 'finetune-toolkit[webdataset]'"
        )
    folder, asked = existing_folder(root), f"data.root={root}"
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise RequestError(f"{asked}: expected a folder of .tar shards; there are none")
    images: list[Picture] = []
    digests: list[str] = []
    names: list[str] = []
    sides: list[str] = []
    ignored = 0
    with progress("reading shards", len(shards)) as advance:
        for shard in shards:
            side = SIDES.get(shard.stem.partition("-")[0], "")
            try:
                places = _places(shard)
                for sample in _samples(shard):
                    key = sample["__key__"]
                    extension = next((one for one in sample if f".{one}" in EXTENSIONS), None)
                    if extension is None:
                        ignored += 1
                        continue
                    if "cls" not in sample:
                        raise RequestError(f"{asked}: expected {key}.cls in {shard.name}, a picture's label")
                    name = f"{key}.{extension}"
                    images.append(Stored(f"{shard}/{name}", partial(_content, shard, *places[name])))
                    digests.append(hashlib.sha256(sample[extension]).hexdigest())
                    names.append(sample["cls"].decode(errors="replace").strip())
                    sides.append(side)
            except (tarfile.TarError, OSError) as error:
                raise RequestError(f"{asked}: {shard.name} is damaged ({error})") from None
            advance(1)
    if not images:
        raise RequestError(
            f"{asked}: expected pictures ({', '.join(EXTENSIONS)}) in its shards; there are none"
        )
    given = set(sides) - {""}
    if given and ("" in sides or "train" not in given):
        raise RequestError(
            f"{asked}: expected the names of all shards, or of none, to begin with train-, val- or test-;"
            f" there are {brief([shard.name for shard in shards])}"
        )
    classes, labels = numbered(names)
    return Found(
        str(folder),
        asked,
        classes,
        images,
        labels,
        digests,
        brought(sides),
        ignored_files=ignored,
    )


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """The files of a shard by their extension, those of one sample together."""
    import webdataset

    yield from webdataset.WebDataset([f"file:{shard}"], shardshuffle=False, nodesplitter=None)


def _places(shard: Path) -> dict[str, tuple[int, int]]:
    """Where each file of a shard begins, and its bytes; named as webdataset names them."""
    with tarfile.open(shard) as archive:
        members = [member for member in archive if member.isfile()]
    with shard.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, io.SEEK_END)
        if any(file.read()):  # tarfile itself takes a header that is cut off for the end
            raise tarfile.ReadError("unexpected end of data")
    split = ((member.name.rpartition("/"), member) for member in members)
    return {
        f"{folder}{slash}{stem}.{rest.lower()}": (member.offset_data, member.size)
        for (folder, slash, name), member in split
        for stem, _, rest in [name.partition(".")]
    }


def _content(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
