"""What lies in the working folder is data: no command, and no Python that one starts, runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import chdir
from functools import partial
from pathlib import Path

import pytest

from finetune import workers
from finetune.cli import at_once
from finetune.config.compose import compose
from finetune.errors import RunError
from support import hostile
from support.processes import Started
from support.runs import CHECKOUT, QUICK

SWEEP = ("train", "-m", "optimizer.lr=0.1,0.01")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


@pytest.fixture
def marker(few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What appears when one of the files is run that lie in the working folder."""
    folder, marker = tmp_path / "work", tmp_path / "marker"
    hostile.lay_out(folder, marker)
    (folder / "pictures").symlink_to(few_pictures)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT / "src"))
    return marker


def begins_python(folder: str) -> None:
    os.chdir(folder)
    at_once(lambda: subprocess.run([sys.executable, "-c", "import random"], check=True))


@pytest.mark.slow
def test_a_worker_runs_nothing_of_the_working_folder(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "torch.py").write_text("raise SystemExit(5)")  # importing the real one takes long
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'short'}:{CHECKOUT / 'src'}")
    with pytest.raises(RunError, match=r"process . of 2 failed"):
        workers.launch(compose(list(TWO)), tmp_path / "run", quiet=True)
    assert not marker.exists()


def test_every_python_that_a_command_starts_is_told(marker: Path) -> None:
    with chdir("/"):  # where the fork server itself is begun
        assert Started(work=partial(begins_python, str(marker.with_name("work")))).ended().code == 0
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("compile=true",), TWO], ids=["compile", "ddp"])
def test_no_training_runs_anything_of_the_working_folder(marker: Path, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, CHECKOUT / "train.py", *QUICK, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert not marker.exists()


@pytest.mark.slow
def test_no_command_runs_anything_of_the_working_folder(marker: Path) -> None:
    console = [Path(sys.executable).with_name("finetune")]
    ended = subprocess.run(
        [sys.executable, *console, *SWEEP, *QUICK], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    for rest in (("predict", "latest", "pictures"), ("report", "latest"), ("explain", "latest", "pictures")):
        ended = subprocess.run([sys.executable, *console, *rest], capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
    assert not marker.exists()


def test_nothing_beside_the_script_is_run(marker: Path) -> None:
    shutil.copy(CHECKOUT / "train.py", "train.py")
    ended = subprocess.run([sys.executable, "train.py", "nosuch=1"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "error: nosuch: there is no such setting\n")
    assert not marker.exists()
