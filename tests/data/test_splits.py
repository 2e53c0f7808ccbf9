"""An image's side of the split follows from its content alone."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.digests import content_digest
from finetune.data.splits import split_by_content, take_validation, too_few

MANY = [content_digest(str(number).encode()) for number in range(4000)]
ONE = np.zeros(4000, np.int64)  # all of one class


def sides(digests: list[str], split: dict[str, np.ndarray]) -> dict[str, str]:
    return {digests[i]: side for side, indices in split.items() for i in indices}


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.3, 0.1), (0.0, 0.5), (0.2, 0.0)])
def test_the_shares_are_about_what_was_asked_for(val: float, test: float) -> None:
    split = split_by_content(MANY, ONE, val, test)
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(MANY)))
    for side, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        assert abs(len(split[side]) / len(MANY) - share) < 0.03  # more than four deviations
        assert len(split[side]) > 0 or share == 0


def test_adding_and_removing_moves_nobody() -> None:
    before = sides(MANY[:1000], split_by_content(MANY[:1000], ONE[:1000], 0.15, 0.15))
    after = sides(MANY[500:], split_by_content(MANY[500:], ONE[500:], 0.15, 0.15))
    assert len(set(before.values())) == 3
    for content in MANY[500:1000]:
        assert before[content] == after[content]


def test_identical_pictures_share_a_side() -> None:
    doubled = [content for content in MANY[:300] for _ in range(2)]
    split = split_by_content(doubled, ONE[:600], 0.3, 0.3)
    for indices in split.values():
        assert len(indices) > 0
        assert {i ^ 1 for i in indices} == set(indices)


def test_order_decides_nothing() -> None:
    assert sides(MANY, split_by_content(MANY, ONE, 0.2, 0.2)) == sides(
        MANY[::-1], split_by_content(MANY[::-1], ONE, 0.2, 0.2)
    )


def test_a_larger_test_share_only_adds() -> None:
    small, large = (set(split_by_content(MANY, ONE, 0.0, share)["test"]) for share in (0.1, 0.3))
    assert small < large


def test_every_class_has_something_to_learn_from() -> None:
    labels = np.arange(4000) // 4  # a thousand classes of four
    split = split_by_content(MANY, labels, 0.4, 0.4)
    assert set(labels[split["train"]]) == set(range(1000))
    assert 900 < len(split["train"]) < 1500


def test_a_class_of_two_goes_to_train_with_whatever_is_identical() -> None:
    digests = [*MANY[:60], MANY[0], MANY[1]]  # the last two are the first two again, in a class of two
    labels = np.array([0] * 60 + [1, 1])
    assert any(
        {0, 1} & set(split_by_content(MANY[:60], ONE[:60], 0.3, 0.6)[side]) for side in ("val", "test")
    )
    split = split_by_content(digests, labels, 0.3, 0.6)
    assert {0, 1, 60, 61} <= set(split["train"])
    assert too_few(("a", "b", "c"), labels) == ["b"]


def test_a_rare_label_of_several_trains() -> None:
    labels = np.zeros((400, 2), np.float32)
    labels[::2, 0] = labels[[5, 7], 1] = 1
    split = split_by_content(MANY[:400], labels, 0.4, 0.4)
    assert {5, 7} <= set(split["train"])
    assert all(len(indices) > 50 for indices in split.values())


def test_validation_is_taken_from_train_alone() -> None:
    given = {"train": np.arange(0, 3000), "val": np.array([], np.int64), "test": np.arange(3000, 4000)}
    split = take_validation(given, MANY, ONE, 0.2)
    assert np.array_equal(split["test"], given["test"])
    assert sorted(np.concatenate([split["train"], split["val"]])) == list(range(3000))
    assert 480 < len(split["val"]) < 720


def test_a_digest_is_of_all_that_a_picture_is() -> None:
    image = np.arange(16, dtype=np.uint8)
    same = [content_digest(image.reshape(4, 4)), content_digest(image.reshape(4, 4).copy())]
    others = [
        content_digest(image),
        content_digest(image.reshape(2, 8)),
        content_digest(image.reshape(4, 4).astype(np.int16)),
        content_digest(image.reshape(4, 4) + 1),
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5
