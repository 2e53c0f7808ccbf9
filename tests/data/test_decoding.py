"""Processes decode to what threads do, and what goes wrong in one is told here."""

import ctypes
import os
import signal
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data import decoding, reader
from finetune.data.dataset import Stored
from finetune.data.decoding import decode_apart, processes
from finetune.data.digests import content_digest
from finetune.data.images import BadImage, ChangedImage
from finetune.data.reader import Reader
from finetune.errors import RunError
from finetune.features.extract import extract
from finetune.model.preprocessing import Preprocessing

SIZES = Preprocessing(24, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty images, of which the fifth is broken."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = [folder / f"{number}.png" for number in range(40)]
    for file in found:
        Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(file)
    found[4].write_bytes(b"no image")
    return found


def test_processes_decode_what_one_thread_does(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one = Reader(files, SIZES, uncropped=frozenset([1, 7]))
    expected, bad = one.all(1)
    monkeypatch.setattr(reader, "MANY", 30)
    monkeypatch.setattr(decoding, "processes", lambda workers: workers)
    before, done = torch.random.get_rng_state(), list[int]()
    pixels, found = one.all(2, done.append)
    assert torch.equal(pixels, expected)
    assert (found, len(done)) == (bad, 40)
    assert [one.index for one in found] == [4]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_features_are_the_same(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read = Reader(files, SIZES)
    compute = lambda images: (images.float().mean((2, 3)),)  # noqa: E731
    (told, expected), *_ = extract(compute, read, range(40), 40, "cpu")
    monkeypatch.setattr("finetune.features.extract.processes", lambda cores: 2)
    (others, found), *_ = extract(compute, read, range(40), 40, "cpu:0")  # as beside a GPU
    assert (others, [bad.index for _, bad in told if bad]) == (told, [4])
    assert torch.equal(found[0], expected[0])


def test_rows_are_taken_no_faster_than_they_are_decoded() -> None:
    taken = list[int]()

    def without_end():
        for number in count():
            taken.append(number)
            yield [number]

    batches = decode_apart(lambda row: torch.full((3, 2, 2), row % 256, dtype=torch.uint8), without_end(), 2)
    for number, (chosen, (image,)) in enumerate(islice(batches, 50)):
        assert chosen == [number]
        assert isinstance(image, torch.Tensor)
        assert int(image[0, 0, 0]) == number
    assert len(taken) <= 50 + 2 * 2 + 1


def test_an_image_that_has_changed_ends_it(files: list[Path]) -> None:
    digests = [content_digest(file.read_bytes()) for file in files]
    digests[9] = "another"
    batches = [list(range(start, start + 8)) for start in range(0, 40, 8)]
    with pytest.raises(ChangedImage, match=r"9\.png: changed since the run began") as raised:
        list(decode_apart(Reader(files, SIZES, digests=digests), batches, 2))
    assert raised.value.image == files[9]


def test_what_cannot_be_pickled_is_told_all_the_same() -> None:
    def read(row: int) -> BadImage:
        raise ChangedImage(Stored("stored 3", lambda: b""))

    with pytest.raises(ChangedImage, match=r"^stored 3: changed since the run began"):
        list(decode_apart(read, [[1]], 1))


def test_an_error_of_a_process_is_itself() -> None:
    def read(row: int) -> BadImage:
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder") as raised:
        list(decode_apart(read, [[1]], 1))
    assert not isinstance(raised.value, RunError)


def test_a_process_that_is_killed_is_told(files: list[Path]) -> None:
    def read(row: int) -> BadImage:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RunError, match="a process that decodes images was killed; is memory full"):
        list(decode_apart(read, [[1], [2]], 2))


def test_processes_end_with_the_one_that_began_them() -> None:
    def read(row: int) -> torch.Tensor:
        number = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
        return torch.full((3, 1, 1), number.value, dtype=torch.uint8)

    ((_, (found,)),) = decode_apart(read, [[1]], 1)
    assert isinstance(found, torch.Tensor)
    assert found.unique().tolist() == [signal.SIGKILL]


def test_threads_where_cores_or_memory_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "ram", partial(int, 128 << 30))
    assert [processes(cores) for cores in (1, 3, 4, 16, 128)] == [0, 0, 4, 16, 16]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [processes(cores) for cores in (12, 64)] == [0, 16]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(decoding, "ram", partial(int, 24 << 30))
    assert [processes(cores) for cores in (4, 16)] == [4, 6]
    monkeypatch.setattr(decoding, "ram", partial(int, 8 << 30))
    assert processes(16) == 0
    monkeypatch.setattr(decoding.sys, "platform", "darwin")
    monkeypatch.setattr(decoding, "ram", partial(int, 128 << 30))
    assert processes(16) == 0
