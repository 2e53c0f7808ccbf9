"""Runs that fail or are interrupted: exit code, one line, and what is kept."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.model.freeze import Frozen
from support.privilege import without_privilege
from support.processes import Started
from support.runs import QUICK, checkpoint, newest, summary_of

Train = Callable[..., Any]


@pytest.fixture(autouse=True)
def pictures(few_pictures: Path, tmp_path: Path) -> None:
    """`pictures` in the working directory of each test."""
    (tmp_path / "pictures").symlink_to(few_pictures)


@pytest.mark.slow
def test_a_loss_that_is_not_finite(train: Train) -> None:
    ended = train(*QUICK, "freeze=all", "loss=sum_squares", "optimizer.lr=1e10", "precision=32", "epochs=4")
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert "optimizer.lr" in ended.err
    summary = summary_of(newest())
    assert summary["status"] == "failed"
    assert summary["reason"] in ended.err


def test_a_batch_with_one_value_per_channel_is_a_wrong_request(train: Train) -> None:
    ended = train(*QUICK, "freeze=none", "batch_size=1", "data.augment=none", "epochs=1")
    assert ended.code == 2
    assert ended.err.startswith(
        "error: a BatchNorm that trains got a single value per channel, expected more"
    )
    assert ended.err.count("\n") == 1


def test_the_proof_fails_a_run_whose_frozen_part_moved(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds the BatchNorms in eval mode here, so that their statistics move."""
    monkeypatch.setattr(Frozen, "hold", lambda self, model: None)
    ended = train(*QUICK, "freeze=all", "cache=none", "epochs=1", "max_steps=2")
    assert ended.code == 1
    assert ended.err.startswith("error: frozen tensors changed")
    assert "conv1.1.running_mean" in ended.err
    assert summary_of(newest())["status"] == "failed"


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_run_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.chdir(tmp_path)
    process = Started("train", *QUICK, "epochs=1000000", "schedule=constant")
    assert any(line.startswith("epoch       3/") for line in process.stdout)
    process.send_signal(number)
    ended = process.ended()
    assert ended.code == 128 + number
    folder = tmp_path / (tmp_path / "outputs/latest").read_text().strip()
    kept = checkpoint(folder, "last")
    assert kept["epoch"] + 1 >= 3
    assert ended.err.endswith(
        f"error: interrupted by {number.name}; the checkpoint of epoch {kept['epoch'] + 1} is kept;"
        f" finetune resume {folder.relative_to(tmp_path)} goes on\n"
    )
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert checkpoint(folder, "best")["epoch"] <= kept["epoch"]
    assert summary_of(folder)["status"] == "interrupted"
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_folder_that_cannot_be_written_is_one_line(train: Train, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with without_privilege():
            ended = train(*QUICK)
    finally:
        tmp_path.chmod(0o700)
    assert ended.code in (1, 2)
    assert ended.err.count("\n") == 1
