"""`finetune curve`: what it draws, what it expects of twice the images, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.dataset import Dataset
from finetune.evaluation.learning import draw_training, extrapolated_gain, measure_curve, solve_parts
from finetune.say import Screen
from support.ended import Ended
from support.privilege import without_privilege
from support.runs import summary_of

Command = Callable[..., Ended]


def dataset(labels: np.ndarray, digests: list[str] | None = None) -> Dataset:
    """A data set of which only labels and digests count."""
    names = tuple(map(str, range(labels.max() + 1)))
    digests = digests or [str(row) for row in range(len(labels))]
    return Dataset("toy", names, digests, labels, split={}, digests=digests)  # type: ignore[arg-type]


def clouds(images: int, classes: int = 4, width: int = 12) -> tuple[torch.Tensor, np.ndarray]:
    """Classes that overlap, each a cloud of its own."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, images)
    middles = random.normal(0, 0.7, (classes, width))
    return torch.tensor(middles[labels] + random.normal(0, 1, (images, width))).float(), labels


def test_a_draw_is_stratified_and_takes_identical_images_together() -> None:
    labels = np.repeat([0, 1, 2, 3], (80, 40, 39, 1))
    digests = [str(row) for row in range(160)]
    digests[10:20] = ["same"] * 10
    train = np.arange(160)
    data = dataset(labels, digests)
    drawn = [draw_training(data, train, 80, number) for number in range(5)]
    assert len({tuple(rows) for rows in drawn}) == 5
    for rows in drawn:
        assert len({*rows}) == len(rows)
        assert np.isin(train[10:20], rows).sum() in (0, 10)
        assert abs(np.bincount(labels[rows], minlength=3)[1:3] - 20).max() <= 1
    assert draw_training(data, train, 160, 0).tolist() == train.tolist()


@pytest.mark.parametrize("grouped", [False, True])
def test_sizes_are_of_what_is_different_where_images_are_there_several_times(grouped: bool) -> None:
    """Sixteen different images or groups, the first of them nine times; each class has eight."""
    unit = np.repeat(np.arange(16), [9] + [2] * 15)
    data, keys = dataset(unit % 2), [f"{one:02}" for one in unit]
    data = replace(data, units=keys, groups=keys) if grouped else replace(data, digests=keys)
    train = np.arange(len(unit))
    right = solve_parts(torch.randn(len(unit), 4), data, train, train, console=Screen(quiet=True))
    assert [*right] == [10, 14, 20, 28, 39]
    for size in right:
        rows = draw_training(data, train, size, 0)
        drawn = np.unique(unit[rows])
        assert np.isin(unit, drawn).sum() == len(rows)
        assert len(drawn) == round(size / 39 * 16)


def test_groups_of_the_images_measured_on_are_resampled_whole() -> None:
    groups = np.repeat(np.arange(8), 25)
    right = {size: np.stack([groups % 2 == 0] * 5) for size in (10, 17, 28, 48, 80)}
    labels = np.arange(200) % 2
    parted, together = (measure_curve(right, labels, ("a", "b"), some) for some in (None, groups))
    for one, other in zip(parted["points"], together["points"], strict=True):
        assert one["value"] == other["value"] == 0.5
        assert one["high"] - one["low"] < 0.2
        assert other["high"] - other["low"] > 0.5


def test_a_power_law_is_continued_to_twice_the_images() -> None:
    sizes = [50, 100, 200, 400]
    scores = np.stack([1 - 2 * np.array(sizes) ** -0.5, np.full(4, 0.7)], 1)
    gains = extrapolated_gain(sizes, scores, 1e-3)
    np.testing.assert_allclose(gains, [2 * (400**-0.5 - 800**-0.5), 0], atol=1e-9)


@pytest.mark.slow
def test_the_interval_holds_what_twice_the_images_give() -> None:
    features, labels = clouds(1000)
    data, held = dataset(labels), np.arange(400, 1000)
    quiet = Screen(quiet=True)
    right = solve_parts(features, data, np.arange(200), held, console=quiet)
    curve = measure_curve(right, labels[held], data.classes)
    twice = solve_parts(features, data, np.arange(400), held, console=quiet)[400].mean()
    assert [*right] == [25, 42, 71, 119, 200]
    assert [part.shape for part in right.values()] == [(5, 600)] * 4 + [(1, 600)]
    assert curve["twice"]["low"] <= twice <= curve["twice"]["high"]
    assert curve["gain"]["low"] <= twice - curve["points"][-1]["value"] <= curve["gain"]["high"]
    assert curve["points"][0]["value"] < curve["points"][-1]["value"] < curve["twice"]["value"]
    assert curve["twice"]["high"] - curve["twice"]["low"] < 0.12


def test_few_held_out_images_that_are_all_right_are_no_certainty() -> None:
    labels = np.repeat([0, 1], 6)
    right = {size: np.ones((5 if size < 80 else 1, 12), bool) for size in (10, 17, 28, 48, 80)}
    curve = measure_curve(right, labels, ("a", "b"))
    assert curve["twice"]["value"] == pytest.approx(1)
    assert curve["twice"]["low"] < 0.8
    for one in (*curve["points"], curve["twice"]):
        assert 0 <= one["low"] < one["value"] <= one["high"] <= 1
    assert "would gain most" not in curve["sentence"]


def test_the_class_that_gains_is_named_where_that_is_sure() -> None:
    labels = np.repeat([0, 1], 200)
    right = {}
    for size, share in ((10, 0.2), (17, 0.35), (28, 0.5), (48, 0.65), (80, 0.8)):
        known = np.concatenate([np.ones(200, bool), np.arange(200) < 200 * share])
        right[size] = np.stack([known] * (5 if size < 80 else 1))
    assert measure_curve(right, labels, ("a", "b"))["sentence"].endswith("; class b would gain most")


@pytest.mark.slow
def test_the_command_answers_and_the_report_shows_it(
    finished_run: Callable[..., Path], tmp_path: Path, command: Command
) -> None:
    made = finished_run("cache=disk", "precision=32", "cache_dir=cache")
    for name in ("run", "pictures"):
        shutil.copytree(made.parent / name, tmp_path / name)
    ended = command("curve", "run")
    assert (ended.code, ended.err) == (0, "")
    curve = summary_of(tmp_path / "run")["curve"]
    assert curve["sentence"] in ended.out
    assert [one["images"] for one in curve["points"]][-1] * 2 == curve["twice"]["images"]
    assert curve["sentence"] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert command("evaluate", "run").code == 0  # the summary is still one
    (tmp_path / "run").chmod(0o500)
    with without_privilege():
        ended = command("curve", "run")
    assert (ended.code, ended.out.splitlines()[-1]) == (1, f"answer   {curve['sentence']}")
    assert ended.err == "error: run/.lock: cannot be written: Permission denied; the answer is not kept\n"


@pytest.mark.slow
def test_heads_of_a_trained_backbone_are_solved_on_the_weights_before(
    finished_run: Callable[..., Path], tmp_path: Path, command: Command
) -> None:
    made = finished_run("freeze=none", "epochs=1")
    for name in ("run", "pictures"):
        shutil.copytree(made.parent / name, tmp_path / name)
    ended = command("curve", "run")
    assert (ended.code, ended.err) == (0, "")
    assert "heads are solved on the frozen weights that the run began with: random" in ended.out


def test_a_run_with_folds_is_refused_with_what_to_do(
    finished_run: Callable[..., Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run("data.folds=3").parent)
    ended = command("curve", "run")
    told = "was tested in folds; one without them (data.folds=null) has images to measure on"
    assert (ended.code, ended.err) == (
        2,
        f"error: data.folds: expected a run with a split; this one {told}\n",
    )


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (("data.val_fraction=0", "data.test_fraction=0"), "and others to measure on; there are 60 and 0"),
        (
            ("data.val_fraction=0.4", "data.test_fraction=0.4"),
            "expected 24 different images to train on, 8 times the classes",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(
    finished_run: Callable[..., Path],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    line: str,
) -> None:
    made = finished_run("epochs=1", *overrides)
    monkeypatch.chdir(made.parent)
    before = json.loads((made / "summary.json").read_text())
    ended = command("curve", "run")
    assert ended.code == 2
    assert line in ended.err
    assert len(ended.err.splitlines()) == 1
    assert json.loads((made / "summary.json").read_text()) == before
