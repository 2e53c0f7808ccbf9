"""The solved head is the optimum, and its strength is what scikit-learn would choose."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from finetune.training.losses import create_loss
from finetune.training.solve import STRENGTHS, Problem, follow_path

LOSS = create_loss("cross_entropy")
Folds = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def digits() -> tuple[Problem, Folds]:
    images, labels = load_digits(return_X_y=True)
    images = StandardScaler().fit_transform(images[:500] + np.random.default_rng(0).normal(0, 4, (500, 64)))
    labels = labels[:500]
    folds = [tuple(map(torch.from_numpy, pair)) for pair in StratifiedKFold(5).split(images, labels)]
    return Problem(torch.from_numpy(images), torch.from_numpy(labels), LOSS, 10), folds


def test_the_path_is_scikit_learns(digits: tuple[Problem, Folds]) -> None:
    examples, folds = digits
    path = list(follow_path(examples, folds, LOSS))
    tried = len(path)
    assert [point.strength for point in path] == list(STRENGTHS[:tried])
    fitted = 400  # images of each fold: there the sum that is penalised is over these
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LogisticRegressionCV(
            Cs=[1 / (fitted * strength) for strength in STRENGTHS],
            cv=[(a.numpy(), b.numpy()) for a, b in folds],
            scoring="neg_log_loss",
            max_iter=2000,
            tol=1e-6,
        ).fit(examples.features.numpy(), examples.labels.numpy())
    theirs = -next(iter(reference.scores_.values())).mean(0)
    ours = np.array([point.log_loss for point in path])
    order = np.argsort(reference.Cs_)
    np.testing.assert_allclose(ours[:-1], theirs[order][: tried - 1], rtol=0.01)
    assert ours[-1] == pytest.approx(theirs[order][tried - 1], rel=0.03)  # far from what is chosen
    assert ours.argmin() == theirs[order].argmin() == tried - 3  # two that are worse end it


def test_answers_are_of_the_images_held_out(digits: tuple[Problem, Folds]) -> None:
    examples, folds = digits
    (point,) = follow_path(examples, folds, LOSS, strengths=[0.1])
    held = torch.cat([examples.labels[rows] for _, rows in folds])
    assert point.logits.shape == (500, 10)
    assert float((point.logits.argmax(1) == held).double().mean()) == point.accuracy
    alone = [next(follow_path(examples, [fold], LOSS, strengths=[0.1])).logits for fold in folds]
    torch.testing.assert_close(point.logits, torch.cat(alone), rtol=0, atol=0.1)


def test_several_labels_an_image() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator)
    labels = torch.stack([features[:, 0] > 0, features[:, 1] > 0], 1).float()
    rows = torch.arange(60)
    bce = create_loss("bce")
    point = next(follow_path(Problem(features, labels, bce, 2), [(rows[:40], rows[40:])], bce, [1e-3]))
    assert point.accuracy > 0.8
    assert point.weight.abs().argmax(1).tolist() == [0, 1]
