"""The measures, against scikit-learn's and torchmetrics' own."""

from __future__ import annotations

import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as reference
from torch import Tensor

from finetune.training.metrics import confusion_matrix, measure_classes, probabilities

CLASSES = tuple("abcdefgh")


@pytest.fixture(params=[8, 12])
def answers(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Answers that are right about two times in three, by a head of as many outputs as classes, or more."""
    generator = torch.manual_seed(request.param)
    labels = torch.randint(0, 7, (500,), generator=generator)  # class h has no pictures
    logits = torch.randn(500, request.param, generator=generator)
    logits[torch.arange(500), labels] += 2
    return logits, labels


def test_measures_are_those_of_scikit_learn_and_torchmetrics(answers: tuple[Tensor, Tensor]) -> None:
    logits, labels = answers
    outputs = logits.shape[1]
    found = measure_classes(logits, labels, CLASSES)
    predicted, p = logits.argmax(1), logits.double().softmax(1)
    assert found["pictures"] == 500
    assert found["accuracy"] == sklearn.metrics.accuracy_score(labels, predicted)
    recalls = sklearn.metrics.recall_score(labels, predicted, labels=range(7), average=None)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    f1 = sklearn.metrics.f1_score(labels, predicted, labels=range(7), average="macro")
    assert found["macro_f1"] == pytest.approx(f1)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, p, k=5, labels=range(outputs))
    assert found["top5_accuracy"] == pytest.approx(top5)
    loss = sklearn.metrics.log_loss(labels, p, labels=range(outputs))
    assert found["log_loss"] == pytest.approx(loss, rel=1e-6)
    error = reference.multiclass_calibration_error(logits, labels, outputs, n_bins=15)
    assert found["calibration_error"] == pytest.approx(float(error), abs=1e-6)


def test_the_table_has_a_row_for_every_class(answers: tuple[Tensor, Tensor]) -> None:
    logits, labels = answers
    rows = measure_classes(logits, labels, CLASSES)["per_class"]
    p, r, f1, pictures = sklearn.metrics.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(8), zero_division=0
    )
    assert [row["name"] for row in rows] == list(CLASSES)
    assert [row["pictures"] for row in rows] == list(pictures)
    assert [row["precision"] or 0 for row in rows] == pytest.approx(list(p))
    assert [row["recall"] or 0 for row in rows] == pytest.approx(list(r))
    assert [row["f1"] or 0 for row in rows] == pytest.approx(list(f1))
    assert rows[7]["recall"] is None


def test_bins_hold_every_answer_once(answers: tuple[Tensor, Tensor]) -> None:
    found = measure_classes(*answers, CLASSES)["bins"]
    assert len(found) == 15
    assert sum(one["pictures"] for one in found) == 500
    assert (found[0]["lower"], found[-1]["upper"]) == (0, 1)
    for one in found:
        assert (one["confidence"] is None) == (one["accuracy"] is None) == (one["pictures"] == 0)
        if one["confidence"] is not None:
            assert one["lower"] < one["confidence"] <= one["upper"]


def test_certain_answers_fall_into_the_last_bin_and_nothing_is_infinite() -> None:
    logits = 1000 * torch.eye(3)[[0, 1, 1]]
    found = measure_classes(logits, torch.tensor([0, 1, 2]), "abc")
    assert found["bins"][-1]["pictures"] == 3
    assert found["calibration_error"] == pytest.approx(1 / 3)
    assert found["log_loss"] == pytest.approx(1000 / 3)
    assert found["top5_accuracy"] is None  # of three outputs


def test_bce_gives_each_output_a_probability_of_its_own() -> None:
    logits = torch.tensor([[3.0, 2.0, -4.0]])
    assert torch.equal(probabilities(logits, softmax=False), logits.double().sigmoid())
    found = measure_classes(logits, torch.tensor([0]), "abc", softmax=False)
    assert found["calibration_error"] == pytest.approx(1 - float(torch.tensor(3.0).sigmoid()), abs=1e-6)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(3)[:1])
    assert found["log_loss"] == pytest.approx(float(expected))


def test_confusion_counts_true_by_predicted() -> None:
    labels, answers = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 0])
    assert confusion_matrix(labels, answers, 3, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
