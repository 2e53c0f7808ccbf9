"""The temperature, against a search of scipy's, and where it must not run away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score
from torch import Tensor

import finetune
from finetune.data import sources
from finetune.evaluation.calibration import BOUNDS, calibrate, fit_temperature, fit_thresholds
from finetune.evaluation.forward import Predictor
from finetune.runs.open import open_run
from finetune.training.metrics import calibration

CLASSES = ("cat", "dog", "fish", "owl")


def draws(count: int, sharpness: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits `sharpness` times too large for the labels drawn by them."""
    generator = torch.manual_seed(seed)
    logits = 2 * torch.randn(count, len(CLASSES), generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_a_scale(sharpness: float) -> None:
    logits, labels = draws(20_000, sharpness, 0)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(sharpness, rel=0.03)
    best = minimize_scalar(
        lambda t: calibration(logits, labels, temperature=t)["log_loss"], bounds=BOUNDS, method="bounded"
    )
    assert found == pytest.approx(best.x, rel=5e-3)


def test_outputs_beyond_the_classes_do_not_count() -> None:
    logits, labels = draws(2_000, 3.0, 1)
    more = torch.cat([logits, torch.full((2_000, 2), -60.0)], 1)
    assert fit_temperature(more, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


@pytest.mark.parametrize("count", [2, 10, 200])
def test_pictures_that_are_all_answered_rightly_do_not_make_answers_certain(count: int) -> None:
    labels = torch.arange(count) % 2
    logits = 5 * torch.eye(2)[labels]
    confidence = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
    assert float(confidence.mean()) == pytest.approx((count + 1) / (count + 2), abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_hopeless_logits_give_a_temperature_within_bounds(scale: float) -> None:
    logits, labels = draws(50, scale, 2)
    assert BOUNDS[0] <= fit_temperature(logits, labels.flip(0)) <= BOUNDS[1]


def test_what_calibration_did_is_measured_on_the_test_split() -> None:
    val, test = draws(500, 4.0, 3), draws(500, 4.0, 4)
    found = calibrate(val, test)
    assert found is not None
    assert found["temperature"] == fit_temperature(*val)
    assert (found["fitted_on"], found["measured_on"]) == (500, "test")
    assert found["ece_before"] == calibration(*test)["calibration_error"]
    assert found["ece_after"] < 0.5 * found["ece_before"]
    assert found["log_loss_after"] < found["log_loss_before"]
    without = calibrate(val, (None, torch.zeros(0)))
    assert without is not None
    assert without["measured_on"] == "val"


def test_nothing_is_calibrated_without_classes_that_exclude_each_other() -> None:
    val = draws(50, 4.0, 3)
    assert calibrate((None, torch.zeros(0)), val) is None
    assert calibrate((val[0], torch.rand(50, 4)), val) is None
    assert calibrate((val[0], torch.zeros(50, dtype=torch.long)), val) is None


def test_a_run_fits_it_on_its_validation_split(run: finetune.Run, few_pictures: Path) -> None:
    dataset = sources.load_dataset("folder", str(few_pictures), 0.15, 0.15)
    rows = dataset.split["val"]
    predictor = Predictor(open_run(str(run.folder)), "32")
    answers = [answer for some in predictor(dataset.images[row] for row in rows) for answer in some]
    logits = torch.stack([answer.logits for answer in answers if answer.logits is not None])
    fitted = run.summary["calibration"]
    assert fitted["fitted_on"] == len(rows)
    expected = fit_temperature(logits, torch.from_numpy(dataset.labels[rows]))
    assert fitted["temperature"] == pytest.approx(expected, rel=1e-3)


def test_a_labels_threshold_has_the_best_f1_and_is_a_half_with_too_few_images() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(200, 3)
    true[:60, 0] = true[:4, 1] = true[50:150, 2] = 1
    logits = torch.randn(200, 3, generator=generator) + 2 * true - torch.tensor([3.0, 0.0, 0.0])
    found = fit_thresholds(logits, true, ["low", "rare", "common"])
    assert found["rare"] == 0.5
    for column, name in ((0, "low"), (2, "common")):
        p, y = logits[:, column].double().sigmoid().numpy(), true[:, column].numpy()
        best = max(f1_score(y, p > level) for level in p - 1e-9)
        assert f1_score(y, p > found[name]) == best
    assert found["low"] < 0.3
