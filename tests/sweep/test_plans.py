"""Which jobs may train together."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config.compose import compose
from finetune.sweep.plans import MOST, Plan, alone_because, groups, numbers, varying


def plan(number: int, *overrides: str) -> Plan:
    return Plan(number, Path(str(number)), overrides, compose(list(overrides)))


@pytest.mark.parametrize(
    "override",
    [
        *(
            "optimizer.lr=0.5",
            "optimizer.momentum=0",
            "optimizer.weight_decay=0.1",
            "optimizer.nesterov=true",
        ),
        *("optimizer.backbone_lr_factor=0.1", "optimizer.decay_norm_and_bias=false", "schedule=step"),
        *("warmup_epochs=2", "step_gamma=0.5", "label_smoothing=0.1", "class_weights=balanced", "seed=3"),
    ],
)
def test_numbers_of_a_training_may_differ(override: str) -> None:
    assert len(groups([plan(0), plan(1, override)])) == 1


@pytest.mark.parametrize(
    "override",
    [
        *("optimizer=adamw", "epochs=3", "batch_size=3", "freeze=through:layer3", "head_hidden=[8]"),
        *("data=digits", "data.image_size=32", "model=resnet34", "max_steps=3", "precision=32", "head=20"),
        *(
            "loss=bce",
            "head_dropout=0.1",
            "cache=none",
            "mixup=0.2",
            "trainer.clip_norm=1",
            "trainer.accumulate_batches=2",
        ),
    ],
)
def test_what_is_computed_may_not(override: str) -> None:
    assert len(groups([plan(0), plan(1, override)])) == 2


def test_jobs_of_their_own_stay_alone_however_alike() -> None:
    alike = [plan(number, "head_dropout=0.1", f"seed={number}") for number in range(2)]
    assert alone_because(compose(["head_dropout=0.1"])) == "head_dropout=0.1"
    assert len(groups(alike)) == 2


@pytest.mark.parametrize("override", ["weights=random", "batchnorm=auto", "model=python:net"])
def test_what_follows_from_the_seed_is_frozen_for_jobs_of_that_seed(override: str) -> None:
    """A random backbone, the folds that decide on BatchNorm, what a model that is brought draws."""
    jobs = [plan(number, override, f"seed={number % 2}") for number in range(4)]
    assert [[one.number for one in group] for group in groups(jobs)] == [[0, 2], [1, 3]]


def test_a_wrong_request_is_in_no_group_and_a_group_has_an_end() -> None:
    settings = compose([])
    many = [Plan(number, Path("."), [], settings) for number in range(MOST + 2)]
    assert list(map(len, groups([*many, Plan(999, Path("."), [], None)]))) == [MOST, 2]


def test_numbers_and_keys_in_few_words() -> None:
    plans = [Plan(number, Path("."), ["epochs=1", f"seed={number}"], None) for number in (0, 1, 2, 5, 7, 8)]
    assert numbers(plans) == "0-2, 5, 7-8"
    assert varying(plans) == ["seed"]
