"""Intervals: Wilson's against SciPy's, and how often those of drawing again hold what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from finetune.training.intervals import bootstrap, draws, of_share, told_apart, wilson
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


def test_images_of_a_group_count_as_fewer_so_that_intervals_hold_what_they_should() -> None:
    """Animals differ in how often they are known: who takes their images for independent is too sure."""
    random, holds = np.random.default_rng(0), np.zeros(3)
    groups = np.repeat(np.arange(20), 10)
    for _ in range(200):
        right = random.random(200) < random.beta(1.6, 0.4, 20)[groups]
        values = torch.from_numpy(right).double()
        together = bootstrap(lambda drawn, values=values: {"share": values @ drawn / 200}, 200, groups)
        ends = of_share(right, groups), together["share"], of_share(right, None)
        holds += [low <= 0.8 <= high for low, high in ends]
    assert holds[0] >= 0.92 * 200
    assert holds[1] >= 0.86 * 200
    assert holds[2] <= 0.8 * 200


def test_groups_of_one_image_change_little_and_those_all_right_count_as_one_image_each() -> None:
    right = np.arange(200) % 5 > 0
    assert of_share(right, np.arange(200)) == pytest.approx(of_share(right, None), abs=0.001)
    assert of_share(np.ones(16), np.repeat(np.arange(4), 4)) == wilson(1.0, 4)


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
    assert not told_apart(better, first, (better > first).astype(int))  # all of it in one group of two


def test_no_interval_reaches_beyond_what_a_measure_can_be() -> None:
    labels = torch.arange(33) % 2
    logits = torch.eye(2)[labels.where(torch.arange(33) > 0, 1)]  # one of them is wrong
    found = measure_classes(logits, labels, "ab")["intervals"]
    assert all(0 <= low <= high <= 1 for name, (low, high) in found.items() if name != "log_loss")


def test_ends_that_no_draw_tells_are_wilsons_of_shares_and_none_of_other_measures() -> None:
    wrong = measure_classes(torch.eye(2)[torch.arange(10) % 2], (torch.arange(10) + 1) % 2, "ab")["intervals"]
    assert wrong["balanced_accuracy"] == wrong["accuracy"] == wilson(0, 10)
    alone = measure_classes(torch.tensor([[0.3, 0.1]]), torch.tensor([0]), "ab")["intervals"]
    assert alone == dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1"), wilson(1, 1))


def test_of_two_groups_there_is_students_of_accuracy_alone() -> None:
    logits, groups = torch.eye(2)[torch.arange(100) % 2], np.repeat([0, 1], 50)
    labels = torch.from_numpy(np.where(np.arange(100) % 50 < 10 + 20 * groups, 0, 1))
    assert [*measure_classes(logits, labels, "ab", groups=groups)["intervals"]] == ["accuracy"]


def test_the_ends_of_few_groups_hold_what_they_should() -> None:
    random, holds, groups = np.random.default_rng(0), 0, np.repeat(np.arange(6), 20)
    for _ in range(200):
        values = torch.from_numpy(3 + random.normal(0, 1, 6)[groups] + random.normal(0, 1, 120))
        ((low, high),) = bootstrap(lambda drawn, v=values: {"mean": v @ drawn / 120}, 120, groups).values()
        holds += low <= 3 <= high
    assert holds >= 0.9 * 200
