"""An epoch's figures against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as theirs
from torch import Tensor

from finetune.training import metrics, several
from finetune.training.learner import EpochMetrics
from finetune.training.losses import create_loss
from finetune.training.metrics import once
from finetune.training.several import per_label


def one_class(chosen: Tensor, true: Tensor) -> dict[str, float]:
    return metrics.as_floats(metrics.one_class(chosen, true, once(true)))


def several_labels(logits: Tensor, true: Tensor) -> dict[str, float]:
    return metrics.as_floats(several.several_labels(logits, true, once(true)))


def answers(labels: int = 6, count: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(labels)
    true = (torch.rand(count, labels, generator=generator) < 0.3).float()
    return torch.randn(count, labels, generator=generator) + true, true


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    true = torch.tensor([0] * 90 + [2] * 10)  # class 1 does not occur
    found = one_class(torch.zeros_like(true), true)
    assert found == {"accuracy": 0.9, "balanced_accuracy": 0.5, "macro_f1": pytest.approx(0.9 / 1.9)}


def test_one_class_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    true, chosen = generator.integers(0, 5, 300), generator.integers(0, 5, 300)
    found = one_class(torch.from_numpy(chosen), torch.from_numpy(true))
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(true, chosen))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(true, chosen))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(true, chosen, average="macro"))


@pytest.mark.parametrize("labels", [1, 6])
def test_several_labels_are_scikit_learns(labels: int) -> None:
    logits, true = answers(labels)
    found, y, p = several_labels(logits, true), true.numpy(), logits.sigmoid().numpy()
    assert found["accuracy"] == pytest.approx(((p > 0.5) == y).all(1).mean())
    assert found["macro_f1"] == pytest.approx(
        theirs.f1_score(y, p > 0.5, average="macro" if labels > 1 else "binary")
    )
    assert found["map"] == pytest.approx(theirs.average_precision_score(y, p, average="macro"), rel=1e-6)
    balanced = [theirs.balanced_accuracy_score(y[:, i], p[:, i] > 0.5) for i in range(labels)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(balanced))


def test_labels_that_do_not_occur_are_left_out() -> None:
    logits, true = answers()
    wider = torch.cat([true, torch.zeros(200, 1)], 1)
    found = several_labels(torch.cat([logits, -torch.ones(200, 1)], 1), wider)
    assert found == pytest.approx(several_labels(logits, true))
    assert set(per_label(torch.cat([logits, logits[:, :1]], 1), wider, "abcdefg")) == set("abcdef")
    assert several_labels(logits, torch.zeros(200, 6))["map"] == 0


def test_each_label_has_its_own_figures() -> None:
    logits, true = answers()
    found = per_label(logits, true, ["a", "b", "c", "d", "e", "f"])
    assert found["c"]["pictures"] == true[:, 2].sum()
    assert found["c"]["f1"] == pytest.approx(theirs.f1_score(true[:, 2], logits[:, 2] > 0))
    mean = np.mean([one["average_precision"] for one in found.values()])
    assert several_labels(logits, true)["map"] == pytest.approx(mean)


def test_several_labels_do_not_depend_on_the_batches() -> None:
    logits, true = answers()
    epoch = EpochMetrics(multi_label=True)
    for part in (slice(0, 150), slice(150, 200)):
        epoch.add(torch.tensor([1.0]), torch.tensor([len(true[part])]), logits[None, part], true[None, part])
    assert epoch.means() == [{"loss": 1.0, **several_labels(logits, true)}]
    epoch.add(torch.tensor([4.0]), torch.tensor([50]), logits[None, :50], true[None, :50])
    assert epoch.means()[0]["loss"] == pytest.approx(1.6)  # not remembered too long


def test_means_are_per_image_whatever_the_batches_and_of_each_job() -> None:
    logits, labels = torch.randn(2, 11, 4), torch.randint(4, (2, 11))
    epoch, loss = EpochMetrics(), create_loss("cross_entropy")
    for part in (slice(0, 8), slice(8, 10), slice(10, 11)):
        batch = logits[:, part], labels[:, part]
        losses, weights = zip(*(loss(*job) for job in zip(*batch, strict=True)), strict=True)
        epoch.add(torch.stack(losses), torch.stack(weights), *batch)
    for job, found in enumerate(epoch.means()):
        chosen = logits[job].argmax(1)
        assert found == pytest.approx(
            {
                "loss": F.cross_entropy(logits[job], labels[job]).item(),
                "accuracy": (chosen == labels[job]).double().mean().item(),
                "balanced_accuracy": theirs.balanced_accuracy_score(labels[job].numpy(), chosen.numpy()),
                "macro_f1": theirs.f1_score(
                    labels[job].numpy(), chosen.numpy(), labels=labels[job].unique().tolist(), average="macro"
                ),
            },
            rel=1e-6,
        )


def test_label_vectors_count_their_largest_entry() -> None:
    epoch, ones = EpochMetrics(), torch.ones(1)
    labels = torch.tensor([[[0.6, 0.4], [0.7, 0.3]]])
    epoch.add(ones, ones * 2, torch.tensor([[[2.0, 1.0], [0.0, 1.0]]]), labels)
    assert epoch.means()[0]["accuracy"] == 0.5
