"""How well labels are set apart, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as theirs
import torch

from finetune.training.several import measure, separation


@pytest.fixture
def answers() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(300, 4, generator=generator) < 0.3).float()
    true[:, 3] = 1.0  # the last label says nothing
    logits = torch.randn(300, 4, generator=generator) + true
    return logits.mul(4).round().div(4), true  # many scores are the same


def test_areas_and_curves_are_scikit_learns(answers: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, true = answers[0][:, 0], answers[1][:, 0] == 1
    found = separation(scores, true)
    assert found["roc_auc"] == pytest.approx(theirs.roc_auc_score(true, scores))
    curves = found["curves"]
    false, recall, _ = theirs.roc_curve(true, scores, drop_intermediate=False)
    assert (curves["false_positives"], curves["recall"]) == (pytest.approx(false), pytest.approx(recall))
    precision, again, _ = theirs.precision_recall_curve(true, scores)
    assert (curves["precision"], curves["recall"]) == (
        pytest.approx(precision[::-1]),
        pytest.approx(again[::-1]),
    )
    assert separation(torch.randn(1000), torch.arange(1000) % 2 == 0)["curves"]["recall"][-1] == 1
    assert separation(scores, true | True) == {"roc_auc": None, "curves": {}}


def test_labels_have_their_area_and_what_thresholds_are_worth(
    answers: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, true = answers
    levels = {"a": 0.5, "b": 0.3, "c": 0.8, "d": 0.5}
    found = measure(logits, true, "abcd", softmax=False, temperature=1.0, thresholds=levels)
    areas = [theirs.roc_auc_score(true[:, i], logits[:, i]) for i in range(3)]
    assert [row["roc_auc"] for row in found["per_class"]] == [*map(pytest.approx, areas), None]
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
    yes = logits.sigmoid().numpy() > np.array([*levels.values()])
    assert found["at_thresholds"]["macro_f1"] == pytest.approx(theirs.f1_score(true, yes, average="macro"))
    assert found["at_thresholds"]["accuracy"] == (yes == true.numpy()).all(1).mean()
    for name in ("accuracy", "macro_f1", "map", "log_loss"):
        low, high = found["intervals"][name]
        assert low < found[name] < high < low + 0.3


@pytest.mark.parametrize("images", [1, 5])
def test_where_no_label_is_both_there_and_absent_there_are_no_curves(images: int) -> None:
    true = torch.tensor([[1.0, 0.0, 0.0]]).expand(images, 3)
    found = measure(torch.randn(images, 3), true, "abc", softmax=False, temperature=1.0, thresholds=None)
    assert (found["roc_auc"], found.get("curves")) == (None, None)


def test_two_classes_are_set_apart_as_labels_are() -> None:
    logits, labels = torch.randn(100, 2), torch.arange(100) % 2
    found = measure(logits, labels, "ab", softmax=True, temperature=2.0, thresholds=None)
    assert found["roc_auc"] == pytest.approx(theirs.roc_auc_score(labels, logits.softmax(1)[:, 1]), abs=1e-6)
    three = measure(
        torch.randn(9, 3), torch.arange(9) % 3, "abc", softmax=True, temperature=1.0, thresholds=None
    )
    assert "roc_auc" not in three
