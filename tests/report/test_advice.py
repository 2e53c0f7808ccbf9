"""What a run suggests to try next: rules about what real runs measured, each with what to type."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.config.compose import compose
from finetune.report.advice import advise
from finetune.runs.settings import read_settings
from support.ended import Ended
from support.runs import QUICK, newest, summary_of

Finished = Callable[..., Path]
TYPED = ["data=folder", "data.root=pictures", "optimizer=adamw", "optimizer.lr=0.1", "hydra.run.dir=here"]
SOLVE = "optimizer=lbfgs refit=true"


@pytest.fixture
def pictures(few_pictures: Path, tmp_path: Path) -> Path:
    (tmp_path / "pictures").symlink_to(few_pictures)
    return tmp_path


def advice_of(run: Path, **changed: Any) -> list[tuple[str, str]]:
    """What a run suggests, with parts of its summary changed."""
    return advise(run, {**summary_of(run), **changed}, read_settings(run))


def noise(folder: Path, **images: int) -> None:
    """So many images of noise in each class, of which nothing can be known but by heart."""
    random = np.random.default_rng(0)
    for name, count in images.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.mark.slow
def test_weights_then_the_head_in_place_of_what_was_typed(finished_run: Finished) -> None:
    found = advice_of(finished_run("epochs=1"), overrides=TYPED)
    assert found[:2] == [
        (
            "it began with random weights; with internet access",
            "finetune train data=folder data.root=pictures optimizer=adamw optimizer.lr=0.1 weights=imagenet",
        ),
        (
            "solve for the head exactly, and refit it on training and validation images",
            f"finetune train data=folder data.root=pictures {SOLVE}",
        ),
    ]
    bare = advice_of(run := finished_run("epochs=1"), overrides=["seed=1", "data=folder", "data.root='a b'"])
    assert bare[0][1] == "finetune train 'a b' seed=1 weights=imagenet"
    assert advice_of(run, overrides=["data=folder", "data.root=a", "seed=1"])[0][1].startswith(
        "finetune train data=folder data.root=a seed=1 weights"
    )
    for _, command in found[:2]:
        compose(shlex.split(command)[2:])


def test_a_run_from_python_is_told_the_settings_alone(finished_run: Finished) -> None:
    assert [command for _, command in advice_of(finished_run("epochs=1"))][:2] == ["weights=imagenet", SOLVE]


def test_a_solved_head_is_to_be_refitted_as_it_is(finished_run: Finished) -> None:
    run, typed = finished_run("optimizer=lbfgs", "refit=true"), ["optimizer=lbfgs", "optimizer.select=val"]
    alone = read_settings(run).model_copy(update={"refit": False})
    command = "finetune train optimizer=lbfgs optimizer.select=val refit=true"
    expected = ("refit the head on training and validation images", command)
    assert expected in advise(run, {**summary_of(run), "overrides": typed}, alone)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=lbfgs", "refit=true"),
        ("head_hidden=[8]", "epochs=1"),
        ("ema=0.9", "epochs=1"),
    ],
)
def test_what_is_set_already_or_cannot_be_solved_is_not_suggested(
    finished_run: Finished, overrides: tuple[str, ...]
) -> None:
    assert not [command for _, command in advice_of(finished_run(*overrides)) if "lbfgs" in command]


def test_what_cannot_be_typed_as_it_was_is_the_settings_alone(
    finished_run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run("epochs=1")
    commands = [command for _, command in advice_of(run, overrides=["experiment=fine_tune"])]
    assert commands[:2] == ["weights=imagenet", SOLVE]  # its rate is SGD's
    settings = read_settings(run)
    monkeypatch.setenv("FINETUNE_PLUGINS", "mine.py,other")
    assert advise(run, {**summary_of(run), "overrides": ["seed=1"]}, settings)[0][1] == (
        "finetune train --plugin mine.py --plugin other seed=1 weights=imagenet"
    )


def test_a_run_with_a_config_folder_of_its_own(train: Callable[..., Ended], pictures: Path) -> None:
    (pictures / "conf" / "experiment").mkdir(parents=True)
    (pictures / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    ended = train("--config-dir", "conf", "experiment=mine", *QUICK, "epochs=1")
    assert "with internet access: weights=imagenet\n" in ended.out


def test_the_bundled_weights_are_followed_by_those_of_a_package(
    finished_run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run("epochs=1")
    bundled = summary_of(run)["weights"] | {"used": "bundled"}
    assert advice_of(run, weights=bundled)[0][1] == "weights=imagenet"
    monkeypatch.setattr("finetune.report.advice.find_spec", lambda name: name)
    assert advice_of(run, weights=bundled)[0][1] == "model=efficientnet_lite0 weights=imagenet"


def test_few_test_images_are_to_be_tested_in_folds(finished_run: Finished) -> None:
    run = finished_run("epochs=1")
    data = summary_of(run)["data"]
    folds = ("only 8 test images; to test every image once", "data.folds=5")
    assert advice_of(run)[2] == folds
    for changed in ({"test": 10}, {"own_split": True}, {"to_train": {"red": 1, "green": 9}}):
        assert folds not in advice_of(run, data=data | changed)
    assert advice_of(run, data=data | {"test": 1})[2][0].startswith("only 1 test image; ")
    averaged = read_settings(run).model_copy(update={"ema": 0.9})
    assert folds not in advise(run, summary_of(run), averaged)


def test_nothing_is_suggested_where_nothing_was_validated(finished_run: Finished) -> None:
    assert advice_of(finished_run("epochs=1", "data.val_fraction=0", "data.test_fraction=0")) == []


@pytest.mark.slow
def test_a_backbone_that_learns_by_heart_is_to_be_frozen_and_more_images_are_asked_for(
    train: Callable[..., Ended], tmp_path: Path
) -> None:
    noise(tmp_path / "pictures", a=30, b=30)
    few = "data.test_fraction=0.2"  # of images; not so few that folds come first
    ended = train(*QUICK, "freeze=none", "data.augment=none", "epochs=8", "optimizer.lr=0.02", few)
    assert ended.code == 0
    run = newest()
    told = [line[9:] for line in ended.out.splitlines() if line.startswith("next ")]
    assert told == [f"{fact}: {command}" for fact, command in advice_of(run)]
    assert "with internet access: finetune train" in told[0]
    assert ": freeze more: finetune train" in told[1]
    assert told[1].endswith(f"freeze=all {SOLVE}")
    assert "freeze=none" not in told[1]
    assert told[2].endswith(f"; to see whether more images would help: finetune curve {run}")
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    for fact, command in advice_of(run):
        assert f"<p>{fact}</p><pre>{command}</pre>" in page


@pytest.mark.slow
def test_unequal_classes_are_to_be_weighed_and_the_small_one_needs_images(
    train: Callable[..., Ended], tmp_path: Path, small_weights: str
) -> None:
    noise(tmp_path / "pictures", common=50, rare=12)
    typed = [one for one in QUICK if not one.startswith("weights=")]
    ended = train(*typed, small_weights, "optimizer=lbfgs", "refit=true", "data.val_fraction=0.3")
    assert ended.code == 0
    (weigh, command), (few, curve) = advice_of(newest())
    assert weigh.startswith("small classes are missed, accuracy 0.")
    assert command.endswith(f"{SOLVE} data.val_fraction=0.3 class_weights=balanced")
    assert few == "fewer than 10 images to train on of rare; to see whether more would help"
    assert curve == f"finetune curve {newest()}"
    assert not any("weak" in fact or "solve" in fact for fact, _ in advice_of(newest()))
