"""Sweeps as a user starts them: which jobs train together, what each leaves, how they end and go on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.runs.open import open_run
from finetune.say import Bar, progress
from finetune.sweep.resume import resume_sweep
from finetune.training import device as devices
from finetune.training.callbacks import Curves
from support.ended import Ended
from support.processes import Started
from support.runs import SMALL, checkpoint, summary_of, whole_state

Train = Callable[..., Ended]


@pytest.fixture
def knobs(few_pictures: Path, small_weights: str) -> list[str]:
    return [
        *("data=folder", f"data.root={few_pictures}", "data.image_size=32", small_weights, SMALL),
        *("epochs=2", "batch_size=16", "trainer=cpu", "cache_dir=store"),
    ]


def sweep_of(folder: Path) -> Path:
    (sweep,) = (folder / "outputs" / "sweeps").glob("*/*")
    return sweep


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tags(folder: Path) -> dict[str, Any]:
    (log,) = (folder / "tensorboard").rglob("events.*")
    events = EventAccumulator(str(log))
    events.Reload()
    found = events.Tags()
    return {kind: sorted(names) if isinstance(names, list) else names for kind, names in found.items()}


@pytest.mark.parametrize(
    "common",
    [
        ("optimizer.nesterov=true", "schedule=onecycle,step", "class_weights=balanced"),
        pytest.param(
            ("optimizer=adamw", "head_hidden=[16]", "data.augment=flip", "label_smoothing=0,0.1"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_each_job_is_as_if_it_had_run_alone(
    train: Train, tmp_path: Path, knobs: list[str], common: tuple[str, ...]
) -> None:
    ended = train("-m", *knobs, *common, "optimizer.lr=0.01,0.003", "seed=0,7")
    assert ended.code == 0, ended.err
    assert "together jobs 0-7, which differ in" in ended.out
    sweep = sweep_of(tmp_path)
    for number in (3, 4):  # together both values of each setting
        job, alone = sweep / str(number), tmp_path / f"alone{number}"
        overrides = map(str, OmegaConf.load(job / ".hydra" / "overrides.yaml"))
        assert (
            train(*(line.removeprefix("- ").strip("'") for line in overrides), f"hydra.run.dir={alone}").code
            == 0
        )
        ours, theirs = summary_of(job), summary_of(alone)
        assert ours.keys() == theirs.keys()
        assert json.loads((job / "settings.json").read_text()) == json.loads(
            (alone / "settings.json").read_text()
        )
        for side in ("val", "test"):
            intervals = [one[side].pop("intervals") for one in (ours, theirs)]
            assert ours[side] == pytest.approx(theirs[side], abs=1e-3)
            assert intervals[0].keys() == intervals[1].keys()
        for key in ("best_epoch", "steps", "frozen_proof", "parameters", "data", "seed", "classes"):
            assert ours[key] == theirs[key]
        for mine, other in zip(rows(job), rows(alone), strict=True):
            assert {k: float(v) for k, v in mine.items()} == pytest.approx(
                {k: float(v) for k, v in other.items()}, abs=1e-3
            )
        state = whole_state(alone)
        for name, value in whole_state(job).items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=1e-4)
        expected = tags(alone)
        expected["images"] = ["confusion/test"]
        assert tags(job) == expected
    assert tags(sweep / "0")["images"] == ["confusion/test", "images/train", "images/val"]  # once a sweep
    names = {path.parent.name for path in sweep.rglob("events.*")}
    assert len(names) == 8
    assert all("lr=0.0" in name and "seed=" in name and "head" not in name for name in names)
    for shared in ("checkpoints/frozen.safetensors", "reference.safetensors"):
        assert os.stat(sweep / "0" / shared).st_nlink == 8
    assert open_run(str(sweep / "3")).summary == summary_of(sweep / "3")


def test_a_sweep_of_nothing_is_one_job(train: Train, tmp_path: Path) -> None:
    ended = train("-m", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=first")
    assert ended.code == 0, ended.err
    assert "job 0    no overrides\n" in ended.out
    assert summary_of(tmp_path / "sweep" / "first")["epochs"] == 20


@pytest.mark.slow
def test_heads_are_solved_in_turns_on_shared_features(train: Train, tmp_path: Path, knobs: list[str]) -> None:
    solved = ("optimizer=lbfgs", "optimizer.weight_decay=auto,0.01", "refit=true")
    ended = train("-m", *knobs, *solved, "seed=0,7")
    assert ended.code == 0, ended.err
    assert "together jobs 0-3, which differ in optimizer.weight_decay, seed: solved in turns" in ended.out
    sweep, alone = sweep_of(tmp_path), tmp_path / "alone"
    again = train(*knobs, "optimizer=lbfgs", "refit=true", "seed=7", f"hydra.run.dir={alone}")
    assert again.code == 0, again.err
    ours, theirs = summary_of(sweep / "1"), summary_of(alone)
    assert ours["solution"] == theirs["solution"]
    assert ours["val"] == theirs["val"]
    assert ours["test"] == theirs["test"]
    for name in ("best", "chosen"):
        state = checkpoint(alone, name)["state_dict"]
        for key, value in checkpoint(sweep / "1", name)["state_dict"].items():
            assert torch.equal(value, state[key])
    assert summary_of(sweep / "3")["solution"]["weight_decay"] == 0.01
    for shared in ("checkpoints/frozen.safetensors", "reference.safetensors"):
        assert os.stat(sweep / "0" / shared).st_nlink == 4


@pytest.mark.slow
def test_a_job_that_diverges_is_told_at_once_and_the_others_finish(
    train: Train, tmp_path: Path, knobs: list[str]
) -> None:
    ended = train("-m", *knobs, "optimizer.lr=0.01,1e38", "seed=0,1", "refit=true")
    assert ended.code == 1
    sweep = sweep_of(tmp_path)
    assert not [*sweep.glob("*/checkpoints/refit")]
    summaries = [summary_of(sweep / str(number)) for number in range(4)]
    assert [one["status"] for one in summaries] == ["finished", "finished", "failed", "failed"]
    assert "job 3 (optimizer.lr=1e+38 seed=1): the loss of batch 2 became" in ended.err
    assert summaries[2]["reason"] in ended.err
    assert "2 of 4 jobs" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("refit", ["false", "true"])
def test_a_job_whose_folder_goes_takes_no_other_with_it(
    train: Train, knobs: list[str], tmp_path: Path, refit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Curves.on_train_epoch_end

    def removed(self: Curves, trainer: Any, learner: Any) -> None:
        if trainer.current_epoch == 1 and len(learner.jobs) > 1 and learner.jobs[1].writer:
            shutil.rmtree(learner.jobs[1].folder)
        write(self, trainer, learner)

    monkeypatch.setattr(Curves, "on_train_epoch_end", removed)
    ended = train("-m", *knobs, "seed=0,1,2", f"refit={refit}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert ended.code == 1
    assert ended.err.startswith("error: job 1 (seed=1): ")
    assert ended.err.count("\n") == 1
    assert "b'" not in ended.err
    for number in (0, 2):
        assert summary_of(tmp_path / "sweep" / str(number))["status"] == "finished"


@pytest.mark.slow
def test_a_job_that_cannot_write_is_told_and_the_others_finish(
    train: Train, knobs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    (tmp_path / "sweep" / "0" / "metrics.csv").mkdir()  # as when the disk refuses
    (tmp_path / "sweep" / "2" / "predictions.csv").mkdir(parents=True)
    ended = train("-m", *knobs, "seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert ended.code == 1
    assert ended.err.count("\n") == 2
    assert ended.err.startswith("error: job 0 (seed=0): ")
    assert "error: job 2 (seed=2): " in ended.err
    assert "predictions.csv: cannot be written: Is a directory\n" in ended.err
    assert "metrics.csv: cannot be written: Is a directory; no epoch was finished" in ended.err
    assert "together" in ended.out
    assert summary_of(tmp_path / "sweep" / "0")["status"] == "failed"
    assert summary_of(tmp_path / "sweep" / "1")["status"] == "finished"
    (tmp_path / "sweep" / "2" / "predictions.csv").rmdir()
    before = checkpoint(tmp_path / "sweep" / "2")["state_dict"]
    (tmp_path / "sweep" / "2" / "mine.txt").touch()
    resume_sweep(tmp_path / "sweep", Console(quiet=True))
    assert summary_of(tmp_path / "sweep" / "2")["status"] == "finished"
    assert (tmp_path / "sweep" / "2" / "mine.txt").exists()  # it did not begin anew
    torch.testing.assert_close(checkpoint(tmp_path / "sweep" / "2")["state_dict"], before, rtol=0, atol=0)


@pytest.mark.slow
def test_what_cannot_train_together_trains_alone_and_shares_the_store(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knobs: list[str]
) -> None:
    monkeypatch.setattr(devices, "LIGHT_MACS", 1e6)  # a small machine for a small model
    ended = train("-m", *knobs, "epochs=1", "head_dropout=0,0.5", "freeze=all,through:layer3", "seed=0,1")
    assert ended.code == 0, ended.err
    assert "together jobs 0-1, which differ in seed" in ended.out
    assert "alone    jobs 2-3: one step keeps the machine busy" in ended.out
    assert ended.out.count("(alone: head_dropout=0.5)") == 4
    computed = [summary_of(sweep_of(tmp_path) / str(number))["features"]["computed"] for number in range(8)]
    assert computed == [60, 60, 60, 0, 0, 0, 0, 0]  # of a group all say the same
    logs = [(sweep_of(tmp_path) / str(number) / "log.txt").read_text() for number in range(8)]
    assert all("accuracy" in log for log in logs)


@pytest.mark.slow
def test_the_basic_launcher_trains_one_job_after_the_other(
    train: Train, tmp_path: Path, knobs: list[str]
) -> None:
    ended = train("-m", *knobs, "epochs=1", "seed=0,1", "hydra/launcher=basic")
    assert ended.code == 0, ended.err
    assert "together" not in ended.out
    assert ended.out.count("epoch 1/1") == 2


@pytest.mark.slow
def test_a_sweep_in_a_folder_that_holds_one_is_refused(
    train: Train, tmp_path: Path, knobs: list[str]
) -> None:
    again = ["-m", *knobs, "epochs=1", "hydra.sweep.dir=here", "hydra.sweep.subdir=deep/${hydra.job.num}"]
    assert train(*again, "seed=0,1").code == 0
    before = {file: file.read_bytes() for file in Path("here").rglob("*") if file.is_file()}
    assert not [file for file in before if file.name == "report.html" and file.parent != Path("here")]
    for more, expected in (
        (["seed=2,3"], "a new folder; this one holds a sweep"),
        (
            ["hydra/sweeper=optuna", "optimizer.lr=0.1,0.2"],
            "a new folder; this one holds another sweep",
        ),
    ):
        ended = train(*again, *more)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"error: hydra.sweep.dir=here: expected {expected}")
        assert ended.err.count("\n") == 1
    assert before == {file: file.read_bytes() for file in Path("here").rglob("*") if file.is_file()}


def test_jobs_whose_pictures_are_broken_say_so_in_their_summaries(
    train: Train, tmp_path: Path, knobs: list[str], few_pictures: Path
) -> None:
    shutil.copytree(few_pictures, "some broken")
    (tmp_path / "some broken" / "red" / "0.png").write_bytes(b"")
    ended = train("-m", *knobs, "data.root='some broken'", "seed=0,1", "hydra.sweep.dir=here")
    assert ended.code == 1
    for number in range(2):
        summary = summary_of(Path("here") / str(number))
        assert summary["status"] == "failed"
        assert "1 of 60 images" in summary["reason"]


@pytest.mark.slow
def test_resume_trains_what_is_missing_and_ends_where_it_would_have(
    train: Train, tmp_path: Path, knobs: list[str]
) -> None:
    assert train("-m", *knobs, "seed=0,1,2", "hydra.sweep.dir=whole").code == 0
    assert train("-m", *knobs, "seed=0,1,2", "hydra.sweep.dir=cut").code == 0
    kept = (Path("cut/0/checkpoints/last.ckpt")).stat().st_mtime_ns
    for number, status in ((1, "failed"), (2, "interrupted")):
        (Path("cut") / str(number) / "summary.json").write_text(json.dumps({"status": status, "reason": ""}))
        (Path("cut") / str(number) / "mine.txt").write_text("")
    shutil.rmtree("cut/2/checkpoints")  # it had finished no epoch
    console = Console(file=sys.stdout)
    assert resume_sweep(Path("cut"), console) == 0
    assert Path("cut/0/checkpoints/last.ckpt").stat().st_mtime_ns == kept
    assert [Path(f"cut/{number}/mine.txt").exists() for number in (1, 2)] == [True, False]  # it began anew
    for number in range(3):
        ours, theirs = (checkpoint(Path(name) / str(number)) for name in ("cut", "whole"))
        for name, value in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][name], value, rtol=0, atol=1e-6)
        assert len(rows(Path("cut") / str(number))) == 2
    assert resume_sweep(Path("cut"), console) == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_sweep_and_keeps_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knobs: list[str], number: int, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    process = Started("train", "-m", *knobs, "epochs=20000", "seed=0,1")
    assert any(line.startswith("epoch ") for line in process.stdout)
    time.sleep(0.1)
    process.send_signal(number)
    ended = process.ended()
    assert ended.code == code, ended.err
    name = signal.Signals(number).name
    assert ended.err.startswith(f"error: interrupted by {name}; the checkpoint of epoch ")
    for job in range(2):
        folder = sweep_of(tmp_path) / str(job)
        assert summary_of(folder)["status"] == "interrupted"
        assert checkpoint(folder, "last")["epoch"] == len(rows(folder)) - 1


def test_one_bar_counts_the_epochs_of_all_jobs_on_a_terminal_only() -> None:
    for terminal, jobs, expected in ((True, 3, True), (True, 1, False), (False, 3, False)):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        sweep = Bar(console, f"sweep of {jobs} jobs", 30, unit="epochs", hidden=jobs == 1)
        with sweep, progress(console, "training", 2):
            sweep.reach(20)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert ("sweep of 3 jobs" in shown) == expected
        assert ("20/30" in shown) == expected
