"""Files that are whole or absent, and what killed processes leave of them."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.atomic import PART, linked, part_of, write_atomically

KILLED = """
import os, sys
from pathlib import Path
from finetune.atomic import write_atomically

def write(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.read()

write_atomically(Path(sys.argv[1]), write)
"""


def test_what_a_killed_process_left_is_swept_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "model.safetensors"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout
    writer.stdout.readline()
    (half,) = tmp_path.iterdir()
    write_atomically(tmp_path / "other", b"whole")
    assert half.exists()
    writer.kill()
    writer.communicate()
    others = (part_of(target), tmp_path / ".mine.part")
    for path in (part_of(target, PART), *others):
        path.write_bytes(b"half")
    write_atomically(target, b"whole")
    assert {*tmp_path.iterdir()} == {target, tmp_path / "other", *others}


def test_many_write_in_one_folder_at_once(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(100):
            write_atomically(tmp_path / name, str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abcdefgh", "99")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")
    with pytest.raises(ZeroDivisionError):
        write_atomically(target, lambda file: file.write(b"new") // 0)
    assert target.read_bytes() == b"old"
    assert linked(target, tmp_path / "second")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "second"}
