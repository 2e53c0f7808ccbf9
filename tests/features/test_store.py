import json
import os
import signal
import textwrap
import time

import pytest
import torch

from finetune.features import inventory
from finetune.features.rows import MemoryStore, RowLayout
from finetune.features.store import key, open_store
from support.processes import FORKS, Started, code
from support.rows import LAYOUT, digests, read, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_comes_back_as_it_was_packed(dtype):
    layout = RowLayout(((3, 2), (4,)), dtype)
    given = torch.randn(5, 3, 2).to(dtype), torch.randn(5, 4).to(dtype)
    packed = layout.pack(given)
    assert packed.shape == (5, layout.row_bytes) == (5, 10 * dtype.itemsize)
    for before, after in zip(given, layout.unpack(torch.from_numpy(packed)), strict=True):
        assert torch.equal(before, after)


def test_rows_are_found_again_by_another_process_and_in_any_order(tmp_path):
    with open_store(tmp_path, {"weights": "a"}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
        store.append(digests(3), tensors(3))
    with open_store(tmp_path, {"weights": "a"}, LAYOUT) as store:
        assert set(store.place) == set(digests(1, 2, 3))
        for got, wanted in zip(read(store, 3, 1, 2), tensors(3, 1, 2), strict=True):
            assert torch.equal(got, wanted)
    with open_store(tmp_path, {"weights": "b"}, LAYOUT) as store:
        assert not store.place


def test_memory_store_holds_the_same():
    store = MemoryStore(LAYOUT)
    store.append(digests(1, 2), tensors(1, 2))
    store.append(digests(5), tensors(5))
    for got, wanted in zip(read(store, 5, 1), tensors(5, 1), strict=True):
        assert torch.equal(got, wanted)


def test_the_key_depends_on_every_part_of_the_description():
    about = {"weights": "w", "graph": "g", "versions": ["1", "2"], "view": "plain"}
    keys = {key(about), *(key({**about, name: "other"}) for name in about), key({**about, "more": 1})}
    assert len(keys) == len(about) + 2
    assert key(about) == key(dict(reversed(about.items())))


@pytest.mark.parametrize("harm", ["half a row", "half an entry", "entry without row"])
def test_what_a_killed_writer_left_half_done_does_not_count(tmp_path, harm):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
        data, index = store.folder / "data.bin", store.folder / "index.bin"
    if harm == "half a row":
        data.write_bytes(data.read_bytes() + b"abc")
    elif harm == "half an entry":
        data.write_bytes(data.read_bytes() + bytes(LAYOUT.row_bytes))
        index.write_bytes(index.read_bytes() + b"\0\xff")
    else:
        index.write_bytes(index.read_bytes() + bytes.fromhex(digests(3)[0]) + bytes(4))
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert set(store.place) == set(digests(1, 2))
        store.append(digests(9), tensors(9))
        assert store.verify(digests(1, 2, 9)) == []
        assert torch.equal(read(store, 9)[0], tensors(9)[0])


def test_a_damaged_row_is_found_by_its_checksum_and_made_anew(tmp_path):
    with open_store(tmp_path, {}, LAYOUT) as store:
        store.append(digests(1, 2, 3), tensors(1, 2, 3))
        data = store.folder / "data.bin"
    content = bytearray(data.read_bytes())
    content[LAYOUT.row_bytes + 5] ^= 1
    data.write_bytes(content)
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert store.verify(digests(1, 2, 3)) == digests(2)
        assert set(store.place) == set(digests(1, 3))
        store.append(digests(2), tensors(2))
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert store.verify(digests(1, 2, 3)) == []
        assert torch.equal(read(store, 2)[1], tensors(2)[1])


@pytest.mark.slow
def test_killed_while_writing_everything_finished_is_kept(tmp_path):
    program = f"""
        import torch
        from pathlib import Path
        from finetune.features.rows import RowLayout
        from finetune.features.store import open_store
        with open_store(Path({str(tmp_path)!r}), {{}}, RowLayout(((1000,),), torch.float32)) as store:
            for i in range(10**6):
                store.append([f"{{i + 1:064x}}"], [torch.full((1, 1000), float(i))])
    """
    writer = Started(work=code(textwrap.dedent(program)))
    layout = RowLayout(((1000,),), torch.float32)
    index = tmp_path / "features" / key({})[:32] / "index.bin"
    for _ in range(3000):
        if index.exists() and index.stat().st_size > 36 * 40:
            break
        time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    assert writer.ended().code == -signal.SIGKILL
    with open_store(tmp_path, {}, layout) as store:
        count = len(store.place)
        assert count >= 40
        assert store.verify(list(store.place)) == []
        (rows,) = read(store, *range(1, count + 1))
        assert torch.equal(rows[:, 0], torch.arange(count, dtype=torch.float32))


def _add_missing(folder: str, wanted: list[str]) -> int:
    from pathlib import Path

    with open_store(Path(folder), {}, LAYOUT) as store:
        missing = [digest for digest in wanted if digest not in store.place]
        for digest in missing:
            store.append([digest], tensors(int(digest, 16)))
        return len(missing)


@pytest.mark.slow
def test_of_several_processes_one_computes_and_the_others_wait(tmp_path):
    wanted = digests(*range(1, 41))
    with FORKS.Pool(3) as pool:
        added = pool.starmap(_add_missing, [(str(tmp_path), wanted)] * 3)
    assert sorted(added) == [0, 0, 40]
    with open_store(tmp_path, {}, LAYOUT) as store:
        assert store.verify(wanted) == []
        assert len(store.place) == 40


def test_contents_are_readable_by_hand_and_cleared(tmp_path):
    with open_store(tmp_path, {"model": "resnet18"}, LAYOUT) as store:
        store.append(digests(1, 2), tensors(1, 2))
    (held,) = inventory.contents(tmp_path)
    assert (held["model"], held["rows"], held["bytes"]) == ("resnet18", 2, 2 * LAYOUT.row_bytes)
    assert json.loads((tmp_path / "features" / os.path.basename(held["folder"]) / "about.json").read_text())
    assert inventory.size_of_all(tmp_path) == 2 * LAYOUT.row_bytes
    assert inventory.clear(tmp_path) == (2 * LAYOUT.row_bytes, [])
    assert inventory.contents(tmp_path) == []
