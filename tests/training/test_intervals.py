"""Intervals: Wilson's against SciPy's, and how often those of drawing again hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from finetune.training.intervals import bootstrap, draws, told_apart, wilson
from finetune.training.metrics import measure_classes


@pytest.mark.parametrize(("right", "total"), [(73, 114), (0, 10), (10, 10), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, total: int) -> None:
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right / total, total) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_each_draw_is_as_large_as_the_whole_and_always_the_same() -> None:
    counts = draws(50)
    assert counts.shape == (50, 500)
    assert (counts.sum(0) == 50).all()
    draws.cache_clear()
    assert np.array_equal(counts, draws(50))


@pytest.mark.parametrize("images", [200, 30_000])
def test_the_interval_of_a_mean_is_that_of_its_standard_error(images: int) -> None:
    """The larger one is drawn in several blocks."""
    values = torch.from_numpy(np.random.default_rng(1).normal(3.0, 2.0, images))
    ((low, high),) = bootstrap(lambda drawn: {"mean": values @ drawn / images}, images).values()
    error = float(values.std()) / images**0.5
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.35 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.35 * error)


def test_what_drawing_adds_to_a_calibration_error_is_taken_off_and_the_value_is_inside() -> None:
    """Answers as sure as they are right: the true error is 0, what is measured of 200 is not."""
    random, holds = np.random.default_rng(0), 0
    for _ in range(20):
        p = random.uniform(0.5, 1.0, 200)
        logits = torch.from_numpy(np.stack([np.log(p), np.log1p(-p)], 1))
        found = measure_classes(logits, torch.from_numpy((random.random(200) > p).astype(int)), "ab")
        low, high = found["intervals"]["calibration_error"]
        assert low <= found["calibration_error"] <= high
        holds += low < 0.03
    assert holds >= 18


def test_two_runs_are_told_apart_by_the_images_that_they_answer_differently() -> None:
    first = np.tile([1.0, 1.0, 1.0, 0.0], 50)
    better = first.copy()
    better[3::8] = 1.0  # 25 images more of 200, and none less
    other = np.roll(first, 1)  # as often right, on other images
    assert told_apart(better, first)
    assert not told_apart(first, first)
    assert not told_apart(first, other)


def test_no_interval_reaches_beyond_what_a_measure_can_be() -> None:
    labels = torch.arange(33) % 2
    logits = torch.eye(2)[labels.where(torch.arange(33) > 0, 1)]  # one of them is wrong
    found = measure_classes(logits, labels, "ab")["intervals"]
    assert all(0 <= low <= high <= 1 for name, (low, high) in found.items() if name != "log_loss")
