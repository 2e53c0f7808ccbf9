"""The fixtures of all tests; conftest.py imports them where tests run."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

from finetune import cli
from finetune.model.build import build_model
from support.composed import keep_composed
from support.ended import Ended
from support.runs import SMALL, trained


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class: twenty pictures each of bluish, greenish and reddish noise, 32 pixels square."""
    root = tmp_path_factory.mktemp("few") / "pictures"
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 128, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override that loads weights into the small model: the same ones, whatever the seed."""
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(0)
    save_file(dict(build_model(SMALL.partition("=")[2]).state_dict()), file)
    return f"weights={file}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all workers of this session."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    return tmp_path_factory.getbasetemp().parent if workers else tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def finished_run(shared: Path, few_pictures: Path) -> Callable[..., Path]:
    """The folder of a quick run with some overrides, trained once for all tests and workers.

    It is to be left as it is; `pictures` lies beside it.
    """

    @cache
    def finished(*overrides: str) -> Path:
        folder = shared / f"run-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:16]}"
        with FileLock(f"{folder}.lock"):
            if not (folder / "run" / "summary.json").exists():
                folder.mkdir()
                trained(folder, few_pictures, *overrides)
        return folder / "run"

    return finished


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """Hydra reads the shipped configs once a process."""
    with pytest.MonkeyPatch.context() as patch:
        keep_composed(patch)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "none", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A table of pictures that are red, green and blue, or some of these."""
    generator = np.random.default_rng(0)
    rows = [("path", "label")]
    for number in range(150):
        present = generator.random(3) < 0.4
        pixels = generator.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        pixels[..., present] += 120
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        names = [name for name, here in zip(("red", "green", "blue"), present, strict=True) if here]
        rows.append((f"{number}.png", "|".join(names)))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "labels.csv"


@pytest.fixture
def command(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """`finetune ARGUMENTS…` in this process, in the test's temporary folder and with an empty home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Ended(code, printed.out, printed.err)

    return call


@pytest.fixture
def train(command: Callable[..., Ended]) -> Callable[..., Ended]:
    """`finetune train OVERRIDES…`, likewise."""
    return partial(command, "train")
