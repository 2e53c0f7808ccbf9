"""Features computed in shares: the same bits as by one process, taken in once, nothing finished is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.features.inventory import contents, count_stored
from finetune.features.store import PART, entries_in, open_part, open_store
from support.ended import Ended
from support.rows import LAYOUT, digests, read, tensors
from support.runs import QUICK

ASKED = (*QUICK[:-2], "freeze=[all,-layer4]", "data.augment=flip")


def rows(cache: Path) -> dict[str, dict[str, bytes]]:
    """Of each store the bytes of every image's row, by the image's digest."""
    found = {}
    for folder in sorted((cache / "features").iterdir()):
        entries = entries_in((folder / "index.bin").read_bytes())
        data = np.frombuffer((folder / "data.bin").read_bytes(), np.uint8).reshape(len(entries), -1)
        own = {
            entry["digest"].tobytes().hex(): row.tobytes() for entry, row in zip(entries, data, strict=True)
        }
        assert len(own) == len(entries)  # each once
        found[folder.name] = own
    return found


def test_the_bits_do_not_depend_on_how_many_computed_them(
    few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.chdir(tmp_path)
    fill = ("cache", "--fill", *ASKED)
    for which in range(3):
        ended = command(*fill, "--share", f"{which}/3", "cache_dir=shared")
        assert ended.code == 0, ended.err
        assert f"share    {which} of 3:" in ended.out
    parts = [one["rows"] for one in contents(Path("shared")) if PART in one["folder"]]
    assert len(parts) == 2  # of two views: each takes in those before it
    assert "all 120 were in the store" in command(*fill, "cache_dir=shared").out
    assert "120 computed" in command(*fill, "cache_dir=alone").out
    assert rows(Path("shared")) == rows(Path("alone"))


def test_what_a_killed_process_has_finished_is_taken_in_and_no_part_in_use(tmp_path: Path) -> None:
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1), tensors(1))
    with open_part(tmp_path, {}, LAYOUT) as part:
        part.append(digests(1, 2), tensors(1, 2))
        with (part.folder / "data.bin").open("ab") as file:
            file.write(b"half a row")
    with open_part(tmp_path, {}, LAYOUT) as busy:
        busy.append(digests(3), tensors(3))
        for wanted, count in (((1, 2, 3), 3), ((2, 4), 1)):  # of other images there may be any number
            assert count_stored(tmp_path, {}, set(digests(*wanted))) == count
        with open_store(tmp_path, {}, LAYOUT) as store:
            assert set(store.place) == set(digests(1, 2))
            assert len(store.sums) == 2
            for got, wanted in zip(read(store, 2), tensors(2), strict=True):
                assert torch.equal(got, wanted)
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(1, 2, 3))
    assert [path.name for path in (tmp_path / "features").iterdir()] == [store.folder.name]


def test_a_damaged_row_of_a_part_is_left_out(tmp_path: Path) -> None:
    with open_part(tmp_path, {}, LAYOUT) as part:
        part.append(digests(1, 2), tensors(1, 2))
    data = part.folder / "data.bin"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(2))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--fill", "--share", "3/3"), "--share 3/3: expected K/N, as 0/4 for the first of four parts"),
        (("--fill", "--share", "one"), "--share one: expected K/N, as 0/4 for the first of four parts"),
        (("--share", "0/3"), "--share: expected --fill with it"),
        (("--fill", "--share", "0/3", "batchnorm=auto"), "--share: expected batchnorm=pretrained, not auto"),
    ],
)
def test_what_cannot_be_shared_is_told(
    typed: tuple[str, ...], told: str, command: Callable[..., Ended]
) -> None:
    ended = command("cache", *typed)
    assert (ended.code, ended.err) == (2, f"error: {told}\n")
