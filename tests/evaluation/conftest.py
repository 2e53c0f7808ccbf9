"""One finished run for all tests of what is done with a run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

import finetune
from finetune.runs.open import Saved, open_run
from support.runs import SMALL


@pytest.fixture(scope="session")
def run(few_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> finetune.Run:
    """A run on the three colours; its folder is an absolute path."""
    with contextlib.chdir(tmp_path_factory.mktemp("run")):
        return finetune.fit(
            {"root": few_pictures, "image_size": 32},
            freeze="through:layer2",
            model=SMALL.partition("=")[2],
            weights="random",
            epochs=2,
            cache="memory",
            precision="32",
            folder=Path("run").absolute(),
            quiet=True,
        )


@pytest.fixture(scope="session")
def saved(run: finetune.Run) -> Saved:
    return open_run(str(run.folder))
