"""Mixed images have mixed labels, in the same shares; what is drawn depends on seed and number alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.data.augment import Mix
from support.ended import Ended
from support.runs import summary_of

LABELS = torch.tensor([2, 0, 4])


def told_apart(size: int = 16) -> Tensor:
    """Three images of one value each, 1, 10 and 100, so that a mixed one shows its shares."""
    return torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1).expand(3, 3, size, size).clone()


def shares(images: Tensor) -> Tensor:
    """How much of each image, (3, 3), the three have been mixed of, by the mean over their pixels."""
    values = told_apart()[:, 0, 0, 0].double()
    mean = images.double().mean((1, 2, 3))
    other = values.roll(1)
    share = (mean - other) / (values - other)
    return torch.diag(share) + torch.diag(1 - share).roll(-1, 1)


@pytest.mark.parametrize("alphas", [(0.2, 0), (0, 1), (0.8, 1)], ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("labels", [LABELS, torch.eye(5)[LABELS]], ids=["classes", "vectors"])
def test_labels_have_the_shares_of_the_images(alphas: tuple[float, float], labels: Tensor) -> None:
    mix = Mix(*alphas, 0, outputs=5, seed=0)
    drawn = set()
    for number in range(20):
        images, targets = mix(told_apart(), labels, number)
        expected = shares(images) @ torch.eye(5).double()[LABELS]
        assert torch.allclose(targets.double(), expected, atol=1e-6)
        drawn.add(round(float(targets.max()), 4))
    assert len(drawn) > 10


def test_two_mixed_have_timms_targets() -> None:
    mixup = pytest.importorskip("timm.data.mixup")
    labels = torch.tensor([3, 1])
    for number in range(10):
        _, targets = Mix(0.4, 0, 0, outputs=5, seed=1)(told_apart()[:2], labels, number)
        theirs = mixup.mixup_target(labels, 5, lam=float(targets[0, 3]))
        assert torch.allclose(targets, theirs, atol=1e-6)


def test_a_coin_decides_between_both() -> None:
    mix = Mix(0.5, 0.5, 0, outputs=5, seed=0)
    pasted = [len(mix(told_apart(), LABELS, number)[0][1].unique()) > 1 for number in range(60)]
    assert 15 < sum(pasted) < 45


def test_the_draw_depends_on_seed_and_number_and_nothing_else_draws_from_it() -> None:
    first = Mix(0.5, 0.5, 0.5, outputs=5, seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same = first(told_apart(), LABELS, 3), Mix(0.5, 0.5, 0.5, outputs=5, seed=0)(told_apart(), LABELS, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one, same))
    others = [first(told_apart(), LABELS, 4), Mix(0.5, 0.5, 0.5, outputs=5, seed=1)(told_apart(), LABELS, 3)]
    assert not any(torch.equal(one[0], other[0]) for other in others)


def test_as_many_images_are_erased_as_asked_each_elsewhere() -> None:
    images = torch.ones(400, 3, 16, 16)
    erased, labels = Mix(0, 0, 0.25, outputs=5, seed=0)(images, LABELS, 1)
    touched = (erased == 0).flatten(1).any(1)
    assert touched.float().mean() == pytest.approx(0.25, abs=0.07)
    assert len({tuple(one.flatten().tolist()) for one in erased[touched]}) > 50
    assert torch.equal(labels, LABELS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("label_smoothing=0.1",), ("loss=bce", "freeze=none", "data.augment=trivial")],
    ids=["head", "all"],
)
def test_a_run_trains_on_mixed_images_and_measures_whole_ones(
    finished_run: Callable[..., Path], more: tuple[str, ...]
) -> None:
    run = finished_run("mixup=0.2", "cutmix=1", "erasing=0.25", "epochs=8", "cache=none", *more)
    summary = summary_of(run)
    assert summary["features"] is None  # every epoch has other images
    assert summary["val"]["accuracy"] > 0.5  # by chance 0.33


def test_what_contradicts_mixed_images_is_refused(command: Callable[..., Ended]) -> None:
    for knobs, line in (
        (("mixup=0.2", "cache=memory"), "mixup=0.2: expected cache=auto or none with it"),
        (("mixup=0.2", "class_weights=balanced"), "class_weights=balanced: expected mixup=0"),
        (("erasing=0.2", "optimizer=lbfgs"), "erasing=0.2: expected the same images in every epoch"),
    ):
        ended = command("train", *knobs)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert line in ended.err
