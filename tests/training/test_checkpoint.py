"""Files are whole or absent, whatever happens while they are written."""

import os
import pickle
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune import sealed
from finetune.atomic import write_atomically
from finetune.errors import RunError
from finetune.training.checkpoint import AtomicCheckpointIO, newest, save_frozen
from support.privilege import without_privilege
from support.processes import Started, code
from support.small import Training


def test_a_file_takes_the_old_ones_place(tmp_path: Path) -> None:
    target = tmp_path / "file"
    for text in (b"old", b"new"):
        write_atomically(target, lambda file, text=text: file.write(text))
        assert target.read_bytes() == text
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_follow_the_users_mask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_writer_that_dies_half_way_leaves_the_old_file(tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    program = f"""
import os, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from finetune.atomic import write_atomically
def write(file):
    file.write(b"half of the new one")
    file.flush()
    os.kill(os.getpid(), {int(number)})
write_atomically(pathlib.Path({str(target)!r}), write)
"""
    assert Started(work=code(program)).ended().code == -number
    assert target.read_bytes() == b"old"
    others = [path for path in tmp_path.iterdir() if path != target]
    assert all(path.name.startswith(".") for path in others)
    assert len(others) == (1 if number == signal.SIGKILL else 0)


def test_a_full_disk_is_one_line_with_the_systems_reason(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, target)
    program = f"""
import resource, signal, torch
from finetune.errors import RunError
from finetune.training.checkpoint import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    AtomicCheckpointIO().save_checkpoint({{"value": torch.randn(1 << 16)}}, {str(target)!r})
except RunError as error:
    print(error)
"""
    ended = Started(work=code(program)).ended()
    assert (ended.out, ended.err) == (f"{target}: cannot be written: File too large\n", "")
    assert AtomicCheckpointIO().load_checkpoint(target) == {"value": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/file: cannot be written: No such file or directory$"):
        write_atomically(tmp_path / "nowhere" / "file", lambda file: file.write(b""))


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            without_privilege(),
            pytest.raises(RunError, match=r"cannot be written: Permission denied$"),
        ):
            write_atomically(tmp_path / "file", lambda file: file.write(b""))
    finally:
        tmp_path.chmod(0o700)


def test_damaged_checkpoints_are_one_line(tmp_path: Path) -> None:
    whole, files = tmp_path / "whole.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"value": torch.arange(1000)}, whole)
    data = whole.read_bytes()
    for name, content in (("cut", data[:-500]), ("empty", b""), ("text", b"no checkpoint")):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"{name}\.ckpt: is missing or damaged"):
            files.load_checkpoint(path)
    with pytest.raises(RunError, match="is missing or damaged"):
        files.load_checkpoint(tmp_path / "none.ckpt")


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_seen(tmp_path: Path) -> None:
    file, files, chance = tmp_path / "last.ckpt", AtomicCheckpointIO(), random.Random(0)
    files.save_checkpoint({"value": torch.arange(30_000)}, file)
    assert torch.equal(torch.load(file, weights_only=True)["value"], torch.arange(30_000))
    data = file.read_bytes()
    assert len(data) > 1 << 16  # more than a comment of a zip archive may hold
    ends = range(len(data) - sealed.LENGTH - 22, len(data))  # of the archive, and the digest
    for place in (*ends, *(chance.randrange(len(data)) for _ in range(200))):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :])
        with pytest.raises(RunError, match=r"last\.ckpt: is missing or damaged"):
            files.load_checkpoint(file)


def test_the_best_checkpoint_and_the_last_are_two_files(tmp_path: Path) -> None:
    Training(tmp_path).fit(epochs=1)
    best, last = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()
    assert not best.samefile(last)


def test_a_damaged_checkpoint_is_told_and_a_whole_one_is_never_to_be_removed(tmp_path: Path) -> None:
    Training(tmp_path).fit(epochs=1)
    best, last = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    way = "without it the run goes on from best.ckpt, if that is whole"
    with pytest.raises(RunError, match=rf"last\.ckpt: is missing or damaged \(WrongDigest\); {way}$"):
        newest(tmp_path)
    last.unlink()
    assert (newest(tmp_path) or (None,))[0] == best
    refitted = torch.load(best, weights_only=True) | {"epoch": 7}
    best.rename(best.with_name("chosen.ckpt"))
    sealed.write_checkpoint(best, refitted)
    path, content = newest(tmp_path) or (None, {})
    assert (path, content["epoch"]) == (best, 0)  # of the run, which chosen.ckpt has
    best.with_name("chosen.ckpt").rename(best)
    last.write_bytes(whole)
    best.write_bytes(whole[:-1])
    for kind in ("WrongDigest", "FileNotFoundError"):
        with pytest.raises(RunError, match=rf"best\.ckpt: is missing or damaged \({kind}\)$"):
            newest(tmp_path)
        best.unlink(missing_ok=True)


@pytest.mark.parametrize("content", [[1], {}, {"epoch": "3"}])
def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(RunError, match=r"best\.ckpt: is no checkpoint of a run"):
        newest(tmp_path)


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    torch.save({"frozen_sha256": "abc"}, tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt") == {"frozen_sha256": "abc"}


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil", "plain"):
        with pytest.raises(RunError, match="damaged"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / f"{name}.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_frozen_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    tensors = {
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "view": torch.arange(10)[::2],
        "scalar": torch.tensor(7),
    }
    save_frozen(tmp_path / "frozen.safetensors", tensors, {"size": "224"})
    read = load_file(tmp_path / "frozen.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    save_frozen(tmp_path / "none.safetensors", {}, {"size": "224"})  # freeze=none
    assert load_file(tmp_path / "none.safetensors") == {}
