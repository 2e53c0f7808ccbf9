"""Folds: every image is tested once by a model that was not trained on it, then all are trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from finetune import folds
from finetune.config.compose import compose
from finetune.errors import Interrupted, RequestError
from finetune.evaluation.calibration import temperature_of
from finetune.run import run
from finetune.runs.open import open_run
from finetune.runs.summary import worse_by_temperature
from finetune.runs.sweeps import read_runs
from finetune.training.intervals import wilson
from support.ended import Ended
from support.runs import QUICK, checkpoint, summary_of, trained

SOLVED = ("optimizer=lbfgs", "optimizer.weight_decay=auto")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folded(finished_run: Callable[..., Path]) -> Path:
    return finished_run("data.folds=3")


def answers(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_answered_out_of_its_fold(folded: Path) -> None:
    rows, each = answers(folded), summary_of(folded)["folds"]["test"]["accuracy"]["each"]
    assert len({row["picture"] for row in rows}) == len(rows) == 60
    for fold in range(3):
        own = [row["label"] == row["predicted"] for row in rows if row["fold"] == str(fold)]
        assert len(own) == 20
        assert sum(own) / 20 == pytest.approx(each[fold])


def test_each_fold_has_ended_in_tensorboard(folded: Path) -> None:
    for log in (folded / "tensorboard", *(folded / "folds" / str(fold) / "tensorboard" for fold in range(3))):
        events = EventAccumulator(str(log)).Reload()
        content = events._plugin_to_tag_to_content["hparams"]["_hparams_/session_end_info"]
        assert HParamsPluginData.FromString(content).session_end_info.status == STATUS_SUCCESS


def test_a_fold_by_itself_is_the_same_run(folded: Path, finished_run: Callable[..., Path]) -> None:
    """With its own statistics of the features, its own validation images and the head as it begins."""
    alone = finished_run("data.folds=3", "data.fold=1")
    assert summary_of(alone)["test"]["loss"] == summary_of(folded)["folds"]["test"]["loss"]["each"][1]
    one, other = checkpoint(alone)["state_dict"], checkpoint(folded / "folds" / "1")["state_dict"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    runs = (alone, folded / "folds" / "1", folded)
    seen = [(run / "checkpoints" / "seen.json").read_text() for run in runs]
    assert seen[0] == seen[1] != seen[2]
    assert [row["picture"] for row in answers(alone) if row["split"] == "test"] == [
        row["picture"] for row in answers(folded) if row["fold"] == "1"
    ]


def test_predict_goes_by_the_answers_of_the_folds(folded: Path, command: Callable[..., Ended]) -> None:
    image = str(folded.parent / "pictures" / "red" / "0.png")
    ended = command("predict", str(folded), image, "--coverage", "0.9")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0].endswith("familiar,set")


def test_the_report_names_the_curves_that_it_draws_and_what_the_temperature_was_measured_on(
    folded: Path,
) -> None:
    page = (folded / "report.html").read_text(encoding="utf-8")
    (legend,) = {line for line in page.splitlines() if "<i></i>train</li>" in line}
    assert "validation" not in legend
    fitted = summary_of(folded)["calibration"] | {"ece_before": 0.1, "ece_after": 0.2}
    fitted |= dict.fromkeys(("log_loss_before", "log_loss_after"), 1.0)
    told = "on the answers of the folds the temperature raised the calibration error from 0.100 to 0.200"
    assert worse_by_temperature({"calibration": fitted}) == told


def test_the_leaderboard_of_a_folder_leaves_folds_out(folded: Path) -> None:
    assert [job.folder for job in read_runs(folded)] == [folded]


def test_the_interval_is_students_within_what_can_be(folded: Path) -> None:
    summary = summary_of(folded)
    found = summary["folds"]["test"]["loss"]
    low, high = stats.t.interval(0.95, 2, stats.tmean(found["each"]), stats.sem(found["each"]))
    assert found["interval"] == pytest.approx((max(low, 0), high))
    accuracy = summary["folds"]["test"]["accuracy"]
    assert summary["test"]["intervals"]["accuracy"] == accuracy["interval"]
    low, high = accuracy["interval"]
    assert 0 <= low <= accuracy["mean"] <= high <= 1
    counted = wilson(accuracy["mean"], 60)  # folds that agree by chance are not surer than that
    assert low <= counted[0] + 1e-9
    assert high >= counted[1] - 1e-9
    assert summary["test"]["loss"] == found["mean"] == pytest.approx(stats.tmean(found["each"]))
    assert summary["folds"]["number"] == 3


def test_the_model_is_trained_on_all_and_calibrated_by_the_folds(folded: Path) -> None:
    summary = summary_of(folded)
    assert summary["data"]["train"] == summary["calibration"]["fitted_on"] == 60
    assert summary["best_epoch"] == sorted(summary["folds"]["best_epochs"])[1]
    saved = open_run(str(folded))
    assert temperature_of(saved.summary) == summary["calibration"]["temperature"] != 1
    state = load_file(folded / "checkpoints" / "frozen.safetensors")
    assert (folded / "folds/2/checkpoints/frozen.safetensors").samefile(
        folded / "checkpoints/frozen.safetensors"
    )
    assert state


@pytest.mark.slow
def test_solved_heads_take_the_median_of_the_strengths(finished_run: Callable[..., Path]) -> None:
    folded = finished_run("data.folds=3", *SOLVED)
    paths = [checkpoint(folded / "folds" / str(fold))["path"] for fold in range(3)]
    alone = [min(path, key=lambda point: point["log_loss"])["strength"] for path in paths]
    assert summary_of(folded)["solution"]["weight_decay"] == sorted(alone)[1]


@pytest.mark.slow
def test_an_interrupted_run_goes_on(
    few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folded: Path
) -> None:
    prepare, begun = folds._prepare_fold, list[int]()

    def stopped(prepared: Any, initial: Any, fold: int) -> Any:
        begun.append(fold)
        if begun == [0, 1]:
            raise Interrupted("interrupted by SIGINT", 130)
        return prepare(prepared, initial, fold)

    monkeypatch.setattr(folds, "_prepare_fold", stopped)
    with pytest.raises(Interrupted, match="finetune resume run goes on"):
        trained(tmp_path, few_pictures, "data.folds=3")
    with chdir(tmp_path):
        asked = compose([*QUICK, "data.folds=3"])
        with pytest.raises(RequestError, match="holds a run's checkpoints"):
            run(asked, Path("run"), QUIET)
        kept = (tmp_path / "run/folds/0/checkpoints/best.ckpt").stat().st_mtime_ns
        summary = run(asked.model_copy(update={"resume": "auto"}), Path("run"), QUIET)
        assert run(asked.model_copy(update={"resume": "auto"}), Path("run"), QUIET)["status"] == "finished"
    assert summary["folds"] == summary_of(folded)["folds"]
    assert (tmp_path / "run/folds/0/checkpoints/best.ckpt").stat().st_mtime_ns == kept
    one, other = checkpoint(tmp_path / "run")["state_dict"], checkpoint(folded)["state_dict"]
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_labels_of_which_an_image_has_several(several: Path, command: Callable[..., Ended]) -> None:
    where = ("data=csv", f"data.root={several}", "loss=bce", *QUICK[2:])
    ended = command("train", *where, "data.folds=3", "hydra.run.dir=run", "data.val_fraction=0")
    assert ended.code == 0, ended.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert "3 folds: mAP" in ended.out
    assert summary["val"] is None
    assert set(summary["test"]["per_label"]) == {"red", "green", "blue"}


@pytest.mark.slow
def test_it_is_said_on_the_terminal_and_in_the_report(
    few_pictures: Path, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    (tmp_path / "pictures").symlink_to(few_pictures)
    ended = command("train", "-m", *QUICK, "data.folds=2", "epochs=1,2", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    assert "job 0    epochs=1 (alone: data.folds=2)" in ended.out
    assert "test     2 folds: accuracy " in ended.out
    assert "60 images, each tested in one of 2 folds, then all to train" in ended.out
    assert command("report", "sweep/1").code == 0
    assert "<p>2 folds: accuracy" in Path("sweep/1/report.html").read_text()
    again = command("evaluate", "sweep/1")
    assert again.code == 2
    assert "as the run was tested in folds" in again.err


def test_folds_without_images_to_validate_with_are_left_out_and_a_negative_loss_is_in_its_interval() -> None:
    found = folds._spreads([None, {"loss": -2.0, "accuracy": 1.0}, {"loss": -1.0, "accuracy": 0.5}])
    assert found["loss"]["each"] == [-2.0, -1.0]
    assert found["loss"]["interval"] == pytest.approx(stats.t.interval(0.95, 1, -1.5, 0.5))
    assert found["accuracy"]["interval"] == [0, 1]
    assert folds._spreads([None, {"loss": 1.0}]) == {}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.fold=1"], "data.fold=1: expected a larger data.folds"),
        (["data.folds=3", "data.fold=3"], "data.fold=3: expected a larger data.folds"),
        (["data.folds=3", "batchnorm=adapt"], "data.folds=3: expected batchnorm=pretrained"),
        (["data.folds=3", "trainer.devices=2"], "trainer.devices=1 with it, or a data.fold a run"),
        (["data.folds=3", "patience=2", "data.val_fraction=0"], "patience=2: expected images to validate"),
        (
            ["data.folds=3", "fast_dev_run=true", "batch_size=2"],
            "data.folds: expected fewer, or more images, as fold . has none",
        ),
        (["data.folds=100"], "data.folds=100: expected fewer folds"),
    ],
)
def test_what_cannot_be(few_pictures: Path, tmp_path: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(RequestError, match=line):
        trained(tmp_path, few_pictures, *overrides)
    assert not (tmp_path / "run").exists()
