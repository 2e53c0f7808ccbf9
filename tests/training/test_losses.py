"""Each loss against its formula, and its gradient against finite differences."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from finetune.choices import losses as module
from finetune.choices.losses import LOSSES, bce, cross_entropy, sum_difference, sum_squares
from finetune.errors import RequestError
from finetune.training import losses
from support.runs import CHECKOUT


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


def test_bce_is_its_formula() -> None:
    x, y = torch.ones(5), torch.zeros(3)
    generator = torch.Generator().manual_seed(0)
    w, b = torch.randn(5, 3, generator=generator), torch.randn(3, generator=generator)
    z = (x @ w + b)[None]
    s = torch.sigmoid(z)
    by_hand = (-y * torch.log(s) - (1 - y) * torch.log(1 - s)).mean()
    torch.testing.assert_close(bce(z, y[None]), by_hand, rtol=0, atol=1e-6)
    y = torch.tensor([[1.0, 0.0, 1.0]])
    by_hand = (-y * torch.log(s) - (1 - y) * torch.log(1 - s)).mean()
    torch.testing.assert_close(bce(z, y), by_hand, rtol=0, atol=1e-6)


def test_cross_entropy_is_its_formula(logits: Tensor) -> None:
    minus_log = logits.logsumexp(1, keepdim=True) - logits
    plain = minus_log[torch.arange(6), LABELS].mean()
    torch.testing.assert_close(cross_entropy(logits, LABELS), plain)
    smooth = 0.9 * plain + 0.1 * minus_log.mean()
    torch.testing.assert_close(cross_entropy(logits, LABELS, 0.1), smooth)
    vectors = torch.softmax(torch.arange(24.0, dtype=torch.float64).view(6, 4) % 5, 1)
    torch.testing.assert_close(cross_entropy(logits, vectors), (vectors * minus_log).sum(1).mean())


def test_cross_entropy_with_weights_is_a_weighted_mean(logits: Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    each = (logits.logsumexp(1, keepdim=True) - logits)[torch.arange(6), LABELS]
    share = weights.double()[LABELS]
    loss, weight = losses.create_loss("cross_entropy", 0.0, weights)(logits, LABELS)
    torch.testing.assert_close(loss, (share * each).sum() / share.sum())
    torch.testing.assert_close(weight, share.sum())


def test_sums_are_their_formulas(logits: Tensor) -> None:
    one_hot = torch.eye(4, dtype=torch.float64)[LABELS]
    for labels in (LABELS, one_hot):
        torch.testing.assert_close(sum_squares(logits, labels), ((logits - one_hot) ** 2).sum())
        torch.testing.assert_close(sum_difference(logits, labels), (logits - one_hot).sum())


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name: str, vectors: bool, logits: Tensor) -> None:
    labels = torch.eye(4, dtype=torch.float64)[LABELS] if vectors else LABELS
    loss = losses.create_loss(name)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradient_with_options_equals_finite_differences(smoothing: float, logits: Tensor) -> None:
    loss = losses.create_loss("cross_entropy", smoothing, torch.tensor([0.5, 1.0, 2.0, 4.0]))
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), logits.requires_grad_())


def test_balanced_weights_make_every_class_weigh_the_same() -> None:
    labels = torch.tensor([0] * 8 + [1] * 3 + [2])
    weights = losses.balanced_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(weights.double(), torch.tensor(expected), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.bincount(labels) * weights, torch.full((3,), 4.0))


def test_a_class_without_pictures_does_not_change_the_others() -> None:
    labels = torch.tensor([0, 0, 2])
    assert losses.balanced_weights(labels, 4).tolist() == pytest.approx([0.75, 1.0, 1.5, 1.0])
    alone = losses.create_loss("cross_entropy", 0.0, losses.balanced_weights(labels, 4))
    assert torch.isfinite(alone(torch.randn(2, 4), torch.tensor([3, 3]))[0])


def test_balanced_weights_need_one_class_a_picture() -> None:
    with pytest.raises(RequestError, match="class_weights=balanced"):
        losses.balanced_weights(torch.rand(2, 3), 3)


def test_the_loss_that_contributing_adds_is_its_formula(logits: Tensor) -> None:
    """Of both kinds of labels, and in lines that ruff takes."""
    page = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = page.partition("```python\n")[2].partition("```")[0]
    names = {**vars(module), "Tensor": Tensor}
    exec(text.partition("LOSSES[")[0], names)
    true = logits.softmax(1)[torch.arange(6), LABELS]
    one_hot = torch.eye(4, dtype=torch.float64)[LABELS]
    for labels in (LABELS, one_hot):
        torch.testing.assert_close(names["focal"](logits, labels), (-((1 - true) ** 2) * true.log()).mean())
    assert max(map(len, text.splitlines())) <= 110
