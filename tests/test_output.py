"""Commands whose output goes nowhere, or to where not every letter can go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FINETUNE = Path(sys.executable).with_name("finetune")
# All that `take_over` and `end` are for, without the seconds of a command.
COMMAND = """
import sys
from finetune.cli import at_once
def command():
    for _ in range(20_000):
        print("K\\u00e4se \\u00b1 \\udcff")
    print("done", file=sys.stderr)
at_once(command)
"""


def ended(tail: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process of COMMAND with what the shell is to do with its streams."""
    line = f'"$0" -c "$1" {tail}'
    arguments = ["bash", "-o", "pipefail", "-c", line, sys.executable, COMMAND]
    return subprocess.run(arguments, capture_output=True, env={**os.environ, **environment}, timeout=60)


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_no_command_and_is_no_fault() -> None:
    one = ended("| head -1", PYTHONIOENCODING="ascii")
    assert (one.returncode, one.stdout, one.stderr) == (0, b"K?se ? ?\n", b"done\n")
    one = ended("2>&1 | head -1")
    assert (one.returncode, one.stderr) == (0, b"")


@pytest.mark.slow
def test_names_of_files_are_utf_8_whatever_the_locale() -> None:
    code = r"import os; from finetune.cli import at_once; at_once(lambda: print(os.fsencode('\xe4'), '\xe4'))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-c", code]
    one = subprocess.run(line, capture_output=True, env={**os.environ, **plain}, timeout=60)
    assert (one.returncode, one.stdout, one.stderr) == (0, rb"b'\xc3\xa4' ?" + b"\n", b"")


@pytest.mark.slow
def test_a_closed_stdout_is_nobodys_file() -> None:
    one = ended(">&-")
    assert (one.returncode, one.stdout, one.stderr) == (0, b"", b"done\n")
    assert ended("<&- >&- 2>&-").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_told_when_the_work_is_done() -> None:
    one = ended(">/dev/full")
    said = b"done\nerror: stdout: cannot be written: No space left on device\n"
    assert (one.returncode, one.stderr) == (1, said)


@pytest.mark.slow
def test_help_need_not_be_read() -> None:
    line = f"'{FINETUNE}' train --help | true"
    arguments = ["bash", "-o", "pipefail", "-c", line]
    one = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (one.returncode, one.stderr) == (0, "")
