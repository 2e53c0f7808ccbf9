"""What other processes and programs do to a store while it is in use, and what they leave in it."""

import os
import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from finetune import private
from finetune.errors import RequestError, RunError
from finetune.features import inventory
from finetune.features.store import open_store
from support.privilege import without_privilege
from support.rows import LAYOUT, digests, read, tensors


def test_clear_leaves_a_store_that_is_in_use_names_it_and_removes_the_others(tmp_path):
    with open_store(tmp_path, {"is": "idle"}, LAYOUT) as store:
        store.append(digests(7), tensors(7))
    with open_store(tmp_path, {"is": "busy"}, LAYOUT) as store:
        store.append(digests(1), tensors(1))
        assert inventory.clear(tmp_path) == (LAYOUT.row_bytes, [f"{store.folder} is in use"])
        store.append(digests(2), tensors(2))
    (held,) = inventory.contents(tmp_path)
    assert (held["is"], held["rows"]) == ("busy", 2)
    assert inventory.clear(tmp_path) == (2 * LAYOUT.row_bytes, [])


def test_a_store_removed_under_its_holder_serves_it_still_and_never_mixes_with_the_next(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as mine:
        mine.append(digests(1, 2), tensors(1, 2))
        shutil.rmtree(tmp_path / "features")
        with open_store(tmp_path, {}, LAYOUT) as other:
            other.append(digests(5), tensors(5))
            mine.append(digests(3), tensors(3))
            other.append(digests(6), tensors(6))
        assert mine.verify(digests(1, 2, 3)) == []
        assert torch.equal(read(mine, 3, 1)[0], tensors(3, 1)[0])
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(5, 6))
        assert store.verify(digests(5, 6)) == []
        assert torch.equal(read(store, 6, 5)[0], tensors(6, 5)[0])


def test_whoever_waited_for_a_store_that_is_removed_begins_another(tmp_path):
    holder = ExitStack()
    holder.enter_context(open_store(tmp_path, {}, LAYOUT)).append(digests(1), tensors(1))

    def removed_while_waiting() -> None:
        shutil.rmtree(tmp_path / "features")
        holder.close()

    with open_store(tmp_path, {}, LAYOUT, removed_while_waiting) as store:
        assert not store.place
        store.append(digests(2), tensors(2))
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(2))


def test_a_store_replaced_between_opening_its_two_files_is_opened_anew(tmp_path, monkeypatch):
    whole, done = private.open_file, []

    def replaced(path, cache):
        if path.name == "index.bin" and not done:
            done.append(path)
            shutil.rmtree(tmp_path / "features")
            with open_store(tmp_path, {}, LAYOUT) as other:
                other.append(digests(8), tensors(8))
        return whole(path, cache)

    monkeypatch.setattr(private, "open_file", replaced)
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(8))
        store.append(digests(9), tensors(9))
        assert store.verify(digests(8, 9)) == []


def test_a_store_that_something_else_cuts_is_not_read(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
        os.truncate(store.folder / "data.bin", LAYOUT.row_bytes)
        with pytest.raises(RunError, match=r"data\.bin was changed by something else; run again"):
            store.verify(digests(1, 2))


@pytest.fixture
def only_read(tmp_path):
    """A store of two rows, in a cache that may only be read."""
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
    paths = [tmp_path, *tmp_path.rglob("*")]
    for path in paths:
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield store.folder
    for path in paths:
        path.chmod(0o700)


def test_a_store_that_may_only_be_read_serves_several_and_is_not_added_to(tmp_path, only_read):
    before = {path: path.read_bytes() for path in only_read.iterdir()}
    with (
        without_privilege(),
        open_store(tmp_path, {}, LAYOUT) as store,
        open_store(tmp_path, {}, LAYOUT, waiting=lambda: pytest.fail("it waits")) as other,
    ):
        assert store.verify(digests(1, 2)) == other.verify(digests(1, 2)) == []
        assert torch.equal(read(other, 2, 1)[0], tensors(2, 1)[0])
        with pytest.raises(
            RequestError, match=r"lacks rows and may only be read; another cache_dir, or cache=memory"
        ):
            store.append(digests(3), tensors(3))
        with (
            pytest.raises(
                RequestError, match=r"expected a folder that can be written to .*; another cache_dir"
            ),
            open_store(tmp_path, {"is": "new"}, LAYOUT),
        ):
            pass
    assert {path: path.read_bytes() for path in only_read.iterdir()} == before


def test_a_store_that_something_else_writes_into_is_not_added_to(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1), tensors(1))
        with (store.folder / "data.bin").open("ab") as file:
            file.write(bytes(LAYOUT.row_bytes))
        with pytest.raises(RunError, match=r"data\.bin was changed by something else; run again"):
            store.append(digests(2), tensors(2))


def test_rows_that_somebody_still_has_open_never_change(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
        rows = store.mapped()
    before = rows.copy()
    (store.folder / "index.bin").unlink()
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert not store.place
        store.append(digests(3, 4), tensors(3, 4))
    assert np.array_equal(rows, before)


def test_a_damaged_entry_costs_its_own_row_alone(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2, 3), tensors(1, 2, 3))
    index = store.folder / "index.bin"
    content = index.read_bytes()
    index.write_bytes(content[:40] + b"\xff" + content[41:])
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(digests(1, 2, 3)) & set(store.place) == set(digests(1, 3))
        assert store.verify(digests(1, 3)) == []
        assert torch.equal(read(store, 3)[0], tensors(3)[0])


def test_rows_under_the_digest_of_another_picture_are_damaged(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
    index = store.folder / "index.bin"
    first, second = index.read_bytes()[:36], index.read_bytes()[36:]
    index.write_bytes(second[:32] + first[32:] + first[:32] + second[32:])
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert sorted(store.verify(digests(1, 2))) == digests(1, 2)


# Who may write what


@pytest.mark.parametrize("name", ["data.bin", "index.bin", "about.json"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_a_store_is_refused_and_what_it_leads_to_stays(tmp_path, name, kind):
    with open_store(tmp_path, {}, LAYOUT) as store:
        folder = store.folder
    victim, link = tmp_path / "victim", folder / name
    victim.write_bytes(b"of value" * 100)
    link.unlink()
    link.symlink_to(victim) if kind == "symbolic" else link.hardlink_to(victim)
    with (
        pytest.raises(RequestError, match=f"cache_dir: {link}.*; remove it"),
        open_store(tmp_path, {}, LAYOUT) as store,
    ):
        store.append(digests(1), tensors(1))
    assert victim.read_bytes() == b"of value" * 100
    inventory.clear(tmp_path)
    assert victim.read_bytes() == b"of value" * 100


def test_a_store_that_is_a_link_to_another_folder_is_refused(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        folder = store.folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(RequestError, match="is a link, which is not followed"),
        open_store(tmp_path, {}, LAYOUT),
    ):
        pass
    told = f"cache_dir: {folder} is a link, which is not followed; remove it"
    assert inventory.clear(tmp_path) == (0, [told])
    assert (tmp_path / "elsewhere" / "about.json").exists()


def test_a_store_is_for_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        with open_store(tmp_path / "cache", {}, LAYOUT) as store:
            store.append(digests(1), tensors(1))
    finally:
        os.umask(before)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_removed_is_named_and_nothing_said_to_be_freed(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1), tensors(1))
    store.folder.chmod(0o500)
    with without_privilege():
        freed, left = inventory.clear(tmp_path)
    store.folder.chmod(0o700)
    assert freed == 0
    assert left == [f"{store.folder / 'about.json'}: Permission denied"]
    assert inventory.size_of_all(tmp_path) == LAYOUT.row_bytes


@pytest.mark.parametrize("damage", ["resnet18|resnet81", '"row"|"wor"', "3,|4,", "{|", "a|\udce9"])
def test_a_damaged_description_is_not_believed_and_is_written_again(tmp_path, damage):
    about = {"model": "resnet18"}
    with open_store(tmp_path, about, LAYOUT) as store:
        store.append(digests(1), tensors(1))
    file, (old, new) = store.folder / "about.json", damage.split("|")
    file.write_text(file.read_text().replace(old, new, 1), errors="surrogateescape")
    (held,) = inventory.contents(tmp_path)
    assert held == {"folder": str(store.folder), "rows": 1, "bytes": LAYOUT.row_bytes}
    with open_store(tmp_path, about, LAYOUT) as store:
        assert set(store.place) == set(digests(1))
    assert inventory.contents(tmp_path)[0]["model"] == "resnet18"
