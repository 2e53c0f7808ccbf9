"""Lightning's callbacks beside the run's own: what they log, write and count, and whose errors are whose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import finetune
from finetune.errors import RequestError
from support.runs import summary_of
from support.small import Small

LABELS = np.arange(60) % 3
IMAGES = np.random.default_rng(0).integers(0, 100, (60, 32, 32, 3), dtype=np.uint8)
IMAGES[np.arange(60), ..., LABELS] += 100
DATA = {"source": (IMAGES, LABELS), "image_size": 32, "val_fraction": 0.3}


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.manual_seed(0)


def fit(**settings: Any) -> Path:
    asked = {"epochs": 2, "freeze": "all", **settings}
    finetune.fit(DATA, model=Small(), folder="run", quiet=True, **asked)
    return Path("run")


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_what_callbacks_log_is_in_the_runs_tensorboard_log(optimizer: str) -> None:
    run = fit(callbacks=["learning_rate"], optimizer=optimizer, ema=0.9)  # which a solved head leaves aside
    log = EventAccumulator(str(run / "tensorboard")).Reload()
    names = log.Tags()["scalars"]
    assert "loss/val" in names
    assert not any(name.startswith(("train/", "val/")) for name in names)
    if optimizer == "sgd":
        (rate,) = (name for name in names if name.startswith("lr-SGD"))
        assert log.Scalars(rate)[0].value == pytest.approx(0.01)


def test_a_callbacks_checkpoint_has_its_folder_made() -> None:
    fit(callbacks=[ModelCheckpoint(dirpath="new/one", filename="kept")])
    assert Path("new/one/kept.ckpt").exists()


def test_what_counts_epochs_begins_anew_in_each_phase() -> None:
    stops = EarlyStopping("val/loss", patience=2, min_delta=1e9)
    phases = [{"epochs": 6}, {"epochs": 6, "optimizer.lr": 0.001}]
    run = fit(phases=phases, callbacks=[stops])
    assert [summary_of(run / "phases" / number)["epochs"] for number in "01"] == [3, 3]


def test_each_phase_keeps_a_checkpoint_of_its_own() -> None:
    keeps = ModelCheckpoint(monitor="val/loss", filename="kept")
    run = fit(phases=[{"epochs": 1}, {"epochs": 1, "optimizer.lr": 1e-9}], callbacks=[keeps])
    assert Path(keeps.best_model_path).exists()
    assert "phases/1" in keeps.best_model_path
    assert len(list(run.rglob("kept*.ckpt"))) == 2


def test_what_a_later_phase_cannot_freeze_is_told_before_the_first_trains() -> None:
    with pytest.raises(RequestError, match="phases, number 1: freeze=-nope: matches nothing"):
        fit(phases=[{"epochs": 1}, {"freeze": ["all", "-nope"]}])
    assert not Path("run").exists()


def test_a_metric_that_there_is_not_is_told() -> None:
    with pytest.raises(RequestError, match=r"^callbacks: Early stopping conditioned on metric `val/nope`"):
        fit(callbacks=[EarlyStopping("val/nope")], epochs=1)


def test_an_error_of_a_users_own_files_is_theirs() -> None:
    def transform(image: Any) -> Tensor:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere/background.png")

    with pytest.raises(FileNotFoundError, match="background"):
        fit(transform=transform, freeze="none")
