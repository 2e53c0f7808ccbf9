"""The stress test in its short form; `python scripts/stress.py` tries each kind by the hundred."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
ENDS = ("whole", "equal", "told", "silent", "broken")


def tried(folder: Path, times: int, *kinds: str) -> dict[str, Counter[str]]:
    """How trials of some kinds ended, in a process of their own, from which they are forked."""
    folder.mkdir()
    command = [sys.executable, SCRIPTS / "stress.py", *kinds, "--times", str(times), "--folder", folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    print(ended.stderr, ended.stdout)
    rows = [[cell.strip() for cell in line.split("|")] for line in ended.stdout.splitlines()[2:]]
    return {row[1]: Counter(dict(zip(ENDS, map(int, row[4:9]), strict=True))) for row in rows}


def assert_nothing_wrong(found: dict[str, Counter[str]], times: int) -> None:
    for kind, ends in found.items():
        assert ends.total() == times, kind
        assert (ends["silent"], ends["broken"]) == (0, 0), kind


@pytest.mark.slow
def test_what_is_killed_goes_on_and_nothing_is_wrong_in_silence(tmp_path: Path) -> None:
    kinds = ("kills", "sweeps", "disks", "flips", "clears", "replaced", "races")
    found = tried(tmp_path / "trials", 2, *kinds)
    assert found.keys() == set(kinds)
    assert_nothing_wrong(found, 2)
    assert found["kills"]["equal"]
    assert found["sweeps"]["equal"]


@pytest.mark.slow
def test_a_run_has_one_writer(tmp_path: Path) -> None:
    assert_nothing_wrong(tried(tmp_path / "trials", 2, "writers"), 2)


@pytest.mark.slow
def test_damaged_curves_are_whole_again(tmp_path: Path) -> None:
    assert_nothing_wrong(tried(tmp_path / "trials", 1, "curves"), 1)


@pytest.mark.slow
def test_whatever_file_is_damaged_is_named_or_mended(tmp_path: Path) -> None:
    found = tried(tmp_path / "trials", 7, "corruptions")
    assert sum(ends.total() for ends in found.values()) == 7
    assert not any(ends["silent"] + ends["broken"] for ends in found.values())


def test_a_trial_is_drawn_from_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from random import Random

    from stressing.world import Undisturbed, moment

    like = Undisturbed(Path(), 1.0, writes=50, planning=10)
    drawn = [moment(Random(number), number, like, 0) for number in range(200)]
    assert drawn == [moment(Random(number), number, like, 0) for number in range(200)]
    writes = {one["write"] for one in drawn if "write" in one}
    assert writes == set(range(1, 51))  # before every change
    assert sum("moment" in one for one in drawn) == 100


def test_the_table_counts_and_what_is_wrong_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import stress

    lines = stress.table({"kills": Counter(equal=3)}).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")][3:9] == ["3", "0", "3", "0", "0", "0"]
    assert not stress.failed({"kills": Counter(equal=3, told=1)})
    assert stress.failed({"kills": Counter(silent=1)})
