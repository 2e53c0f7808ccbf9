"""Phases: each an ordinary run, started from the one before, and all together one run."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.atomic import write_sealed
from finetune.build import find_data, make_model
from finetune.config.compose import compose
from finetune.config.phases import phase_settings
from finetune.errors import Interrupted, RequestError
from finetune.ladder import Ladder
from finetune.objects import settings_from
from finetune.run import run
from finetune.runs.settings import read_settings
from finetune.runs.sweeps import read_runs
from finetune.sweep.planned import Planned, write_plan
from finetune.training.callbacks import Curves
from support.ended import Ended
from support.runs import QUICK, checkpoint, newest, summary_of, trained, whole_state

QUIET = Console(quiet=True)
# The second goes on from what was solved for, so slowly that it stays there.
TWO = "phases=[{optimizer:lbfgs},{optimizer:{lr:1e-12},epochs:3}]"
BETTER = "phases=[{optimizer:{lr:1e-9}},{optimizer:lbfgs}]"
THAWED = "phases=[{optimizer:lbfgs},{freeze:[all,-@last],optimizer.lr:0.001,epochs:3},{freeze:none,epochs:1}]"


@pytest.fixture(scope="module")
def phased(finished_run: Callable[..., Path]) -> Path:
    return finished_run(BETTER, "precision=32")


def answers(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_phase_starts_from_the_one_before(finished_run: Callable[..., Path]) -> None:
    phased = finished_run(TWO, "precision=32")
    solved, slow = (whole_state(phased / "phases" / number) for number in "01")
    assert solved.keys() == slow.keys()
    for name, value in solved.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-4, atol=1e-5)
    assert torch.load(phased / "phases/0/checkpoints/best.ckpt", weights_only=True)["epoch"] == 0
    assert [one["predicted"] for one in answers(phased / "phases/0")] == [
        one["predicted"] for one in answers(phased)
    ]
    assert summary_of(phased / "phases/1")["weights"]["used"] == "of run/phases/0"
    assert summary_of(phased)["phase"] == 0  # the second is no better


def test_each_is_refitted_and_the_next_starts_from_before(
    finished_run: Callable[..., Path], few_pictures: Path
) -> None:
    phased = finished_run(TWO, "precision=32", "refit=true", "logger=csv")
    assert not (phased / "tensorboard").exists()
    chosen, refitted = (whole_state(phased / "phases/0", name) for name in ("chosen", "best"))
    slow = whole_state(phased / "phases/1", "chosen")
    for name, value in chosen.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(chosen["fc.weight"], refitted["fc.weight"], rtol=1e-2)
    solved = summary_of(phased / "phases/0")
    assert summary_of(phased)["solution"]["iterations"] == solved["steps"] < summary_of(phased)["steps"]
    (phased / "phases/0/checkpoints/chosen.ckpt").unlink()
    asked = phase_settings(compose([*QUICK, TWO, "refit=true", f"data.root={few_pictures}"]), 1)
    with pytest.raises(RequestError, match=r"chosen.ckpt: expected the model before it was refitted"):
        make_model(asked, find_data(asked), phased / "phases/0")


def test_together_they_are_one_run(phased: Path, command: Callable[..., Ended]) -> None:
    summary, last = summary_of(phased), summary_of(phased / "phases/1")
    assert (summary["status"], summary["phase"], len(summary["phases"])) == ("finished", 1, 2)
    assert summary["weights"]["used"] == "random initialisation"
    assert summary["test"] == last["test"]
    assert summary["steps"] == sum(summary_of(phased / "phases" / one)["steps"] for one in "01")
    assert summary["timing"]["total"] > last["timing"]["total"]
    with (phased / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["phase"]) for row in rows] == [("1", "0"), ("2", "0"), ("3", "1")]
    log = EventAccumulator(str(phased / "tensorboard")).Reload()
    assert [one.value for one in log.Scalars("loss/val")] == pytest.approx(
        [float(row["loss/val"]) for row in rows], rel=1e-6
    )
    assert [job.folder for job in read_runs(phased)] == [phased]
    page = (phased / "report.html").read_text()
    assert "2 phases" in page
    images = str(phased.parent / "pictures" / "red")
    told = [command("predict", str(one), images).out for one in (phased, phased / "phases/1")]
    assert told[0] == told[1] != ""
    with chdir(phased.parent):
        ended = command("evaluate", "run")
    assert "test split: 8 images" in ended.out, ended
    assert command("resume", str(phased)).out.startswith("finished")


def test_a_sweeps_job_whose_phases_have_ended_is_finished(
    phased: Path, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    job = Path(shutil.copytree(phased, tmp_path / "sweep" / "0"))
    (job / "summary.json").unlink()
    write_plan(job.parent, [Planned(job, [], read_settings(job).model_dump())])
    noted = {"overrides": {"hydra": [], "task": []}, "runtime": {"choices": {"hydra/sweeper": "basic"}}}
    (job.parent / "multirun.yaml").write_text(json.dumps({"hydra": noted}))
    with chdir(phased.parent):
        ended = command("resume", str(job.parent))
    assert (ended.code, ended.err) == (0, "")
    assert summary_of(job)["phase"] == summary_of(phased)["phase"]


def test_a_new_run_starts_from_all_of_it(phased: Path, command: Callable[..., Ended]) -> None:
    with chdir(phased.parent):
        ended = command("train", *QUICK, "weights=run", "head=keep", "freeze=[all,-fc]", "hydra.run.dir=new")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(("after", "more"), [(2, ()), (4, ("refit=true", "head_features=all"))])
def test_interrupted_it_goes_on_to_the_same_bits(
    after: int, more: tuple[str, ...], few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second phase, and in the third; the solve is the first validation."""
    whole = trained(tmp_path, few_pictures, THAWED, "precision=32", *more)
    monkeypatch.chdir(tmp_path)
    settings = compose([*QUICK, THAWED, "precision=32", *more])
    write, ended = Curves.on_validation_end, list[int]()

    def interrupted(self: Any, trainer: Any, learner: Any) -> None:
        write(self, trainer, learner)
        ended.append(1)
        if len(ended) == after + 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Curves, "on_validation_end", interrupted)
    with pytest.raises(Interrupted):
        run(settings, Path("cut"), QUIET)
    monkeypatch.setattr(Curves, "on_validation_end", write)
    assert json.loads(Path("cut/summary.json").read_text())["status"] == "interrupted"
    run(settings.model_copy(update={"resume": "auto"}), Path("cut"), QUIET)
    for place in ("", "phases/1", "phases/2"):
        one, two = (checkpoint(folder / place)["state_dict"] for folder in (whole, Path("cut")))
        assert all(value.equal(two[name]) for name, value in one.items()), place
    assert (whole / "metrics.csv").read_text() == Path("cut/metrics.csv").read_text()


def test_other_images_are_told_in_a_later_phase(
    few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(few_pictures, tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    settings = compose([*QUICK, TWO])
    run(settings, Path("run"), QUIET)
    shutil.rmtree("run/phases/1")
    Path("run/summary.json").unlink()
    table = Path("run/phases/0/predictions.csv")
    written = table.read_bytes()
    table.write_bytes(written[:-20])
    told = r"phases/0/predictions.csv: .* changed .*, and finetune resume run writes it again"
    with pytest.raises(RequestError, match=told):
        run(settings.model_copy(update={"resume": "auto"}), Path("run"), QUIET)
    table.write_bytes(written)
    next(Path("pictures").rglob("*.png")).unlink()
    with pytest.raises(
        RequestError, match=r"^phases, number 1: data: the images, their labels or their split .* differs"
    ):
        run(settings.model_copy(update={"resume": "auto"}), Path("run"), QUIET)


@pytest.mark.parametrize(("typed", "key"), [("freeze=auto", "freeze=auto"), (TWO, "phases")])
def test_phases_are_for_training(typed: str, key: str, command: Callable[..., Ended]) -> None:
    for words in (("inspect",), ("cache", "--fill")):
        ended = command(*words, typed, "weights=random", "data.image_size=32")
        assert ended.err == f"error: {key}: expected in training alone; here say what is frozen\n"


def test_a_ladder_takes_what_it_can_climb_with(
    several: Path, command: Callable[..., Ended], tmp_path: Path
) -> None:
    table = ("data=csv", f"data.root={several}", "loss=bce", *QUICK[2:], f"hydra.run.dir={tmp_path}/run")
    ended = command("train", *table, "freeze=auto")
    assert ended.code == 2
    assert ended.err.endswith("expected validation images with one label each, by which it chooses\n")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match=r"optimizer.name=.*expected optimizer=sgd or adamw"):
        settings_from({"freeze": "auto", "optimizer": torch.optim.Adagrad})
    with pytest.raises(RequestError, match=r"^phases, number 0: optimizer: expected a name or a number, and"):
        settings_from({"phases": [{"optimizer": torch.optim.Adagrad}]})


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("phases=[{freez:all}]", "number 0: freez: there is no such setting; did you mean freeze?"),
        (
            "phases=[{epochs:1},{optimizer:lbfg}]",
            "number 1: optimizer=lbfg: expected one of adamw, lbfgs, sgd",
        ),
        ("phases=[{optimizer.lr:-1}]", "number 0: optimizer.lr=-1: expected a number above 0"),
        ("phases=[{head:keep}]", "number 0: head: expected outside phases, as all of them share it"),
        ("phases=[{data.root:x}]", "number 0: data.root: expected outside phases, as all of them share it"),
        (
            "phases=[{epochs:2}] data.folds=3",
            "data.folds=3: expected no phases and no freeze=auto, or a data.fold",
        ),
        ("phases=[{epochs:2}] freeze=auto", "phases: expected another freeze than auto, which makes phases"),
        ("freeze=auto head_hidden=[8]", "error: freeze=auto: head_hidden: expected [] with optimizer=lbfgs"),
        (
            "phases=[{epochs:1},{trainer.devices:2}]",
            "number 1: trainer.devices: expected outside phases, as all share it",
        ),
        (
            "trainer=ddp phases=[{trainer:cpu}]",
            "number 0: trainer.devices: expected outside phases, as all share it",
        ),
        (
            "phases=[{label_smoothing:0.1}] best=loss",
            "label_smoothing: expected outside phases, as all share it with best=loss",
        ),
        ("freeze=auto time_limit=10", "time_limit=10: expected a time such as 90s, 10min or 1.5h"),
        ("time_limit=10min", "time_limit=10min: expected freeze=auto with it"),
        ("phases=3", "phases=3: expected a list such as"),
        ("phases=[1]", "phases=[1]: expected settings for each phase such as '[{freeze: all},{"),
        ("phases=[{epochs:1},{freeze:auto}]", "number 1: freeze=auto: expected outside phases, as it makes"),
    ],
)
def test_what_cannot_be_is_told(typed: str, told: str, command: Callable[..., Ended]) -> None:
    ended = command("train", *typed.split())
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert told in ended.err


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("{precision:16}", "precision=16: expected a GPU"),
        ("{optimizer:lbfgs,freeze:none}", "optimizer=lbfgs: expected a linear layer on constant features"),
        (
            "{data.image_size:8}",
            "data.image_size=8: expected a size where the head reads layer1, layer2, layer3",
        ),
    ],
)
def test_a_later_phase_is_refused_before_any_trains(
    typed: str, told: str, few_pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=f"^phases, number 1: {told}"):
        trained(tmp_path, few_pictures, f"phases=[{{epochs:1}},{typed}]", "trainer=cpu", "head_features=all")
    assert not (tmp_path / "run").exists()


def test_another_optimizer_begins_with_its_own_settings() -> None:
    typed = "phases=[{optimizer:lbfgs},{optimizer:{name:adamw,layer_decay:0.75}},{optimizer:{momentum:0.5}}]"
    _, other, same = (phase_settings(compose([typed]), number).optimizer.model_dump() for number in range(3))
    assert (other["lr"], other["layer_decay"], "momentum" in other) == (0.001, 0.75, False)
    assert (same["name"], same["lr"], same["momentum"]) == ("sgd", 0.01, 0.5)


def test_the_rungs_keep_what_was_asked_of_the_head() -> None:
    asked = compose(["freeze=auto", "optimizer=lbfgs", "optimizer.weight_decay=0.5", "data.augment=flip"])
    first, second, _ = (phase_settings(asked, number) for number in range(3))
    assert (first.optimizer.model_dump(), first.data.augment) == (asked.optimizer.model_dump(), "flip")
    assert (second.optimizer.name, second.data.augment) == ("sgd", "flip")
    for typed, kept in (("pretrained", "auto"), ("adapt", "adapt"), ("auto", "auto")):
        asked = compose(["freeze=auto", f"batchnorm={typed}", "data.augment=standard"])
        rungs = [phase_settings(asked, number) for number in range(3)]
        assert [one.batchnorm for one in rungs] == [kept, "pretrained", "pretrained"]  # of the one before
        assert [one.data.augment for one in rungs] == ["none", "standard", "standard"]


def test_runs_in_a_folder_called_phases_are_none(
    few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.chdir(tmp_path)
    for name in ("1", "mine"):
        run(compose([*QUICK, "epochs=1"]), Path("phases") / name, QUIET)
        assert summary_of(Path("phases") / name)["weights"]["used"] == "random initialisation"
        assert (Path("phases") / name / "report.html").exists()
        assert newest() == Path("phases") / name
    assert len(read_runs(Path("phases"))) == 2


def test_all_phases_are_tried_on_a_batch(
    command: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = command("train", *QUICK, "fast_dev_run=true", "phases=[{optimizer:lbfgs},{batch_size:8}]")
    assert ended.code == 0, ended.err
    assert ended.out.endswith("every phase ran; nothing is kept (fast_dev_run)\n")


def test_more_epochs_are_a_phases_own(phased: Path, command: Callable[..., Ended]) -> None:
    ended = command("resume", str(phased), "epochs=9")
    assert ended.code == 2
    assert "its phases have epochs of their own" in ended.err


def test_a_ladder_ends_where_nothing_is_gained(
    few_pictures: Path, tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    monkeypatch.chdir(tmp_path)
    ended = command("train", *QUICK, "freeze=auto", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    assert "forecast" in ended.out
    assert "training the last stage cannot be told from before on" in ended.out
    summary = summary_of(Path("run"))
    assert (summary["phase"], summary["freeze"], len(summary["phases"])) == (0, ["all"], 2)
    ended = command("train", *QUICK, "freeze=auto", "time_limit=0.001s", "hydra.run.dir=short")
    assert ended.code == 0, ended.err
    assert "no time is left to train the last stage (time_limit)" in ended.out
    assert len(summary_of(Path("short"))["phases"]) == 1


@pytest.mark.parametrize(("grouped", "expected"), [(False, [True, True, False]), (True, [True, False])])
def test_a_rung_is_taken_that_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool, expected: list[bool]
) -> None:
    """Of two groups, which say less than their images, only one has more right."""
    digests = [f"{image:064d}"[::-1] for image in range(40)]
    data = SimpleNamespace(digests=digests, together=lambda rows: rows // 20 if grouped else None)
    monkeypatch.setattr("finetune.ladder.find_data", lambda _: data)
    settings = compose([*QUICK, "freeze=auto", "time_limit=1min"])
    ladder, header = (
        Ladder(settings, tmp_path, QUIET),
        "split,picture,label,predicted,probability,uncalibrated",
    )
    taken = []
    for rung, right in enumerate((20, 36, 38, 40)):
        (tmp_path / "phases" / str(rung) / "checkpoints").mkdir(parents=True)
        seen = {"val": " ".join(one[:16] for one in digests)}
        write_sealed(tmp_path / f"phases/{rung}/checkpoints/seen.json", seen)
        lines = [f"val,{image}.png,a,{'a' if image < right else 'b'},0.9,0.9" for image in range(40)]
        (tmp_path / f"phases/{rung}/predictions.csv").write_text("\n".join([header, *lines]) + "\n")
        taken.append(ladder.goes_on({"timing": {"total": 20.0}}))
    assert taken[: len(expected)] == expected
    assert (ladder.kept, ladder.limit, ladder.spent) == (expected.index(False) - 1, 60, 80)
