"""WebDataset shards: .tar files of images, each with its label beside it."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from finetune.data.dataset import Stored
from finetune.data.images import EXTENSIONS
from finetune.data.sources.labeled import (
    LabeledImages,
    existing_folder,
    number_classes,
    own_splits,
    side_of,
)
from finetune.errors import RequestError, brief

# A sample's files stand one after the other; their names differ in what follows the first dot alone.
NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)")
Sample = tuple[Stored, bytes]  # an image and its label


def find_in_shards(root: str, split: str = "auto") -> LabeledImages:
    """The samples of every shard in a folder, the text of `.cls` as label.

    Shards with train, val or test as a word of their names are these splits, unless `split` is `none`. Images
    stay in their shard until decoded.

    Raises:
        RequestError: there are no shards, or one is damaged or lacks a label.
    """
    folder, setting = existing_folder(root), f"data.root={root}"
    shards = sorted(shard for shard in folder.glob("*.tar") if not shard.name.startswith("."))
    if not shards:
        raise RequestError(f"{setting}: expected a folder of .tar shards; there are none")
    samples: list[Sample] = []
    splits: list[str] = []
    ignored: Counter[str] = Counter()
    for shard in shards:
        try:
            found, without_image = _read_shard(shard, setting)
        except (tarfile.TarError, OSError) as error:
            raise RequestError(f"{setting}: {shard.name} is damaged ({error})") from None
        samples += found
        ignored += without_image
        splits += ["" if split == "none" else _side(shard)] * len(found)
    if not samples:
        raise RequestError(
            f"{setting}: expected images ({', '.join(EXTENSIONS)}) in its shards; there are none"
        )
    _check_names(shards, splits, setting)
    classes, labels = number_classes([_text(image, label, setting) for image, label in samples])
    return LabeledImages(
        name=str(folder),
        setting=setting,
        classes=classes,
        images=[image for image, _ in samples],
        labels=labels,
        splits=own_splits(splits) if any(splits) else None,
        passed_over=ignored,
    )


def _check_names(shards: Sequence[Path], splits: Iterable[str], setting: str) -> None:
    """Raise RequestError where the names of some shards say which split they are, but not of all."""
    declared = set(splits)
    if declared - {""} and "" in declared:
        raise RequestError(
            f"{setting}: expected train, val or test in the names of all shards, or of none; there are"
            f" {brief([shard.name for shard in shards])} (data.split=none takes them as one)"
        )


def _side(shard: Path) -> str:
    """The side that a shard's name has among its words, as imagenet-train-000000; none where it has two."""
    sides = {side for word in re.findall("[a-z]+", shard.stem.lower()) if (side := side_of(word))}
    return sides.pop() if len(sides) == 1 else ""


def _read_shard(shard: Path, setting: str) -> tuple[list[Sample], Counter[str]]:
    """The samples with an image, and by the extensions of their files how many have none."""
    samples, without_image = [], Counter[str]()
    with shard.open("rb") as file:
        for key, files in _grouped(file):
            extension = next((one for one in files if f".{one}" in EXTENSIONS), None)
            if extension is None:
                without_image[" ".join(f".{one}" for one in files if one != "cls")] += 1
                continue
            if "cls" not in files:
                raise RequestError(f"{setting}: expected {key}.cls in {shard.name}, an image's label")
            member = files[extension]
            content = partial(_content, shard, member.offset_data, member.size)
            label = _content(shard, files["cls"].offset_data, files["cls"].size)
            image = Stored(f"{shard}/{key}.{extension}", content)
            samples.append((image, label))
    return samples, without_image


def _text(image: Stored, label: bytes, setting: str) -> str:
    try:
        text = label.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise RequestError(f"{setting}: expected a label in UTF-8 for {image}")
    return text


def _grouped(shard: BinaryIO) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Each sample's key, and its files by their extension."""
    with tarfile.open(fileobj=shard, mode="r:") as archive:
        members = [member for member in archive if member.isfile()]
    shard.seek(-tarfile.BLOCKSIZE, io.SEEK_END)
    if any(shard.read()):  # tarfile itself takes a header that is cut off for the end
        raise tarfile.ReadError("unexpected end of data")
    named = [(match[1], match[2].lower(), one) for one in members if (match := NAME.fullmatch(one.name))]
    for key, files in groupby(named, key=lambda entry: entry[0]):
        yield key, {extension: member for _, extension, member in files}


def _content(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
