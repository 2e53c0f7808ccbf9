"""A run that has ended goes on for more epochs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.runs.epochs import note_epochs
from finetune.runs.settings import read_settings
from finetune.say import Screen
from finetune.training.checkpoint import Checkpoints
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of, whole_state

Command = Callable[..., Ended]
RUN = (*QUICK, "freeze=[all,-layer4]", "head_dropout=0.3", "batch_size=16", "hydra.run.dir=run")

STEP = ("schedule=step", "step_epochs=1", "warmup_epochs=1")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ended(
    finished_run: Callable[..., Path], few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A copy of a run of two epochs, beside its pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(few_pictures)
    return lambda *overrides: Path(shutil.copytree(finished_run(*RUN[len(QUICK) : -1], *overrides), "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        STEP,
        pytest.param(("schedule=constant",), marks=pytest.mark.slow),
    ],
    ids=["step", "constant"],
)
def test_more_epochs_end_as_if_asked_for_from_the_start(
    command: Command, ended: Callable[..., Path], schedule: tuple[str, ...]
) -> None:
    run = ended(*schedule)
    told = command("resume", "run", "epochs=4")
    assert told.code == 0, told.err
    assert f"4, not 2: {schedule[0]} goes on as if so many" in " ".join(told.out.split())
    assert command("train", *RUN, *schedule, "epochs=4", "hydra.run.dir=whole").code == 0
    for name in ("best", "last"):
        a, b = whole_state(run, name), whole_state(Path("whole"), name)
        assert all(value.equal(b[key]) for key, value in a.items())
        assert checkpoint(run, name)["epoch"] == checkpoint(Path("whole"), name)["epoch"]
    assert (run / "metrics.csv").read_text() == Path("whole/metrics.csv").read_text()
    for key in ("epochs", "val", "test", "best_epoch", "steps"):
        assert summary_of(run)[key] == summary_of(Path("whole"))[key]
    assert read_settings(run).epochs == 4
    assert json.loads((run / "settings.json").read_text())["epochs"] == 2  # what its checkpoints belong to
    assert "nothing to do" in command("resume", "run").out
    assert command("predict", "run", "pictures/red/0.png").code == 0


@pytest.mark.slow
def test_too_many_epochs_can_be_taken_back(command: Command, ended: Callable[..., Path]) -> None:
    run = ended()
    before = summary_of(run)
    note_epochs(
        read_settings(run).model_copy(update={"epochs": 4000}), run, Screen(quiet=True)
    )  # and Ctrl-C then
    assert not (run / "summary.json").exists()
    refused = command("resume", "run", "epochs=1")
    assert (refused.code, refused.err[:28]) == (2, "error: epochs=1: expected 2 ")
    told = command("resume", "run", "epochs=2")
    assert told.code == 0, told.err
    assert summary_of(run)["test"] == before["test"]
    assert summary_of(run)["status"] == "finished"


@pytest.mark.slow
def test_a_schedule_with_an_end_is_laid_over_all_epochs_and_told(
    command: Command, ended: Callable[..., Path]
) -> None:
    run = ended("schedule=cosine", "logger=[csv]")
    told = command("resume", "run", "epochs=4")
    assert "damaged" not in told.err  # TensorBoard's log, which was not asked for
    assert "\n0," in (run / "csv" / "metrics.csv").read_text()
    assert "\n0," not in (run / "csv-2" / "metrics.csv").read_text()
    assert "4, not 2: schedule=cosine is laid over all of them" in " ".join(told.out.split())
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    rates = [float(row[rows[0].index("lr/head")]) for row in rows[1:]]
    assert rates == pytest.approx([0.01, 0.005, 0.005, 0.01 * (1 - 2**-0.5) / 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words", "told"),
    [
        (STEP, "epochs=1", "epochs=1: expected 2 or more, as run/settings.json has it"),
        (STEP, "seed=3", "seed: this is the run's own; expected epochs"),
        pytest.param(
            ("max_steps=3",),
            "epochs=4",
            "epochs=4: expected a run that more .*; max_steps=3 ended this one",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("patience=1", "optimizer.lr=1e-30", "freeze=all"),
            "epochs=4",
            "epochs=4: .*; patience=1 ended this one after epoch 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_more_epochs_cannot_change_is_refused_and_the_run_stays_as_it_is(
    command: Command, ended: Callable[..., Path], overrides: tuple[str, ...], words: str, told: str
) -> None:
    before = files(ended(*overrides))
    refused = command("resume", "run", words)
    assert refused.code == 2
    assert re.match(f"error: {told}", refused.err), refused.err
    assert files(Path("run")) == before


@pytest.mark.slow
def test_a_refitted_run_keeps_its_model_until_more_epochs_are_trained(
    command: Command, ended: Callable[..., Path]
) -> None:
    run = ended("refit=true", "schedule=constant")
    before = files(run)
    Path("pictures").unlink()
    assert command("resume", "run", "epochs=3").code == 2
    assert files(run) == before


@pytest.mark.slow
def test_a_runs_head_is_kept_or_said_to_be_left_out(command: Command, ended: Callable[..., Path]) -> None:
    ended("schedule=constant", "head_dropout=0", "standardize=true", "freeze=all")
    said = command("train", *QUICK, "weights=run", "epochs=1", "hydra.run.dir=second")
    assert "3 outputs and was left out (head=keep keeps it, -fc in freeze" in " ".join(said.out.split())
    kept = (*QUICK, "weights=run", "head=keep", "freeze=[all,-fc]", "optimizer.lr=1e-30")
    assert command("train", *kept, "epochs=1", "hydra.run.dir=third").code == 0
    assert summary_of(Path("third"))["val"]["accuracy"] == summary_of(Path("run"))["val"]["accuracy"]


@pytest.mark.slow
def test_patience_counts_through_more_epochs_and_an_interruption_of_these(
    command: Command, ended: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended("patience=3", "optimizer.lr=1e-30", "freeze=all", "schedule=constant")

    def stopped(callback: Checkpoints, trainer: Any, *arguments: Any) -> None:
        if trainer.current_epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_epoch_start", stopped, raising=False)
        told = command("resume", "run", "epochs=9")
    assert (told.code, checkpoint(run, "last")["epoch"]) == (143, 2)
    assert command("resume", "run").code == 0
    assert (summary_of(run)["best_epoch"], summary_of(run)["epochs"]) == (1, 4)
    assert command("resume", "run", "epochs=12").code == 2
