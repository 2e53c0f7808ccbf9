"""Features that memory cannot hold: runs that read them in parts, go on and train together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.features import load, plan, rows
from finetune.training.learner import Learner
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of, whole_state

Train = Callable[..., Ended]
TRAINS = (*QUICK[:-1], "cache_dir=cache", "precision=32", "data.augment=flip", "batch_size=5")
PARTS, BLOCK = 3, 2  # of two views of 60 images, 384 bytes each


@pytest.fixture(autouse=True)
def read(few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory of which a quarter holds a third of the features; how many rows were read each time."""
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.setattr(plan, "ram", lambda: 2 * 60 * 384 * 4 // PARTS)
    for module in (load, rows):
        monkeypatch.setattr(module, "BLOCK", BLOCK * 384)
    found, original = list[int](), rows.read_rows

    def counted(file, wanted, size):
        found.append(len(wanted))
        return original(file, wanted, size)

    monkeypatch.setattr("finetune.features.compute.read_rows", counted)
    return found


def test_a_run_that_is_stopped_within_an_epoch_goes_on_in_its_order_whatever_memory_there_is_then(
    train: Train, command: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "note     the features would take more than a quarter of the memory; they are read in"
    assert train(*TRAINS, "hydra.run.dir=whole").out.count(told) == 1
    step, steps = Learner.training_step, list[int]()

    def stopped(self, batch, index):
        steps.append(index)
        if len(steps) == 13:  # of 9 in an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", stopped)
        assert train(*TRAINS, "hydra.run.dir=cut").code == 143
    monkeypatch.setattr(plan, "ram", lambda: 1 << 40)
    ended = command("resume", "cut")
    assert (ended.code, ended.err) == (0, "")
    assert "resume   after epoch 1" in ended.out
    assert checkpoint(Path("cut"), "last")["origin"]["parts"] == PARTS
    cut, whole = (checkpoint(Path(name), "last")["state_dict"] for name in ("cut", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in cut.items())
    assert summary_of(Path("cut"))["test"] == summary_of(Path("whole"))["test"]


def test_jobs_that_train_together_share_what_is_read_and_are_as_if_alone(
    train: Train, read: list[int], small_weights: str
) -> None:
    asked = (*TRAINS, "optimizer.lr=0.1", small_weights)
    ended = train("-m", *asked, "seed=0,7,8", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    assert "jobs 0-2, which differ in seed" in ended.out
    standardised, *others = read
    parts = [count for count in others if 10 < count < standardised]  # fewer are to validate or to test
    assert len(parts) == 2 * 2 * PARTS  # epochs and views, whatever the number of jobs
    assert sum(parts) == 2 * 2 * standardised
    assert train(*asked, "seed=7", "hydra.run.dir=alone").code == 0
    alone = whole_state(Path("alone"))
    for name, value in whole_state(Path("sweep/1")).items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=1e-4)
