"""A data set with some of its images left out, and what it is known by."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.dataset import Dataset
from finetune.data.sources import load_dataset
from finetune.errors import RequestError
from support.folders import check, fill, folder, save


def test_without_keeps_the_side_of_the_rest(tmp_path: Path) -> None:
    dataset = folder(fill(tmp_path, 20), 0.25, 0.25)
    side_of = {dataset.digests[i]: side for side, indices in dataset.split.items() for i in indices}
    bad = [0, 7, 13, 39]
    rest = dataset.without(bad)
    check(rest)
    assert len(rest.images) == 36
    assert not {dataset.digests[i] for i in bad} & set(rest.digests)
    for side, indices in rest.split.items():
        for i in indices:
            assert side_of[rest.digests[i]] == side
            before = list(dataset.digests).index(rest.digests[i])
            assert rest.images[i] == dataset.images[before]
            assert rest.labels[i] == dataset.labels[before]


def test_without_all_that_trains_is_refused(tmp_path: Path) -> None:
    dataset = folder(fill(tmp_path, 10))
    with pytest.raises(RequestError, match=r"^data.root: expected .*/\d.png for one: no such file\)"):
        dataset.without(dataset.split["train"].tolist(), "no such file")


def test_the_fingerprint_does_not_depend_on_place_name_or_order(tmp_path: Path) -> None:
    first = folder(fill(tmp_path / "here"))
    for seed in range(20):
        for name, number in (("cat", 2 * seed), ("dog", 2 * seed + 1)):
            save(tmp_path / "there" / name / f"renamed {99 - seed}.png", number)
    assert folder(tmp_path / "there").fingerprint() == first.fingerprint()


def test_the_fingerprint_depends_on_pictures_labels_and_split(tmp_path: Path) -> None:
    root = fill(tmp_path)
    seen = {folder(root).fingerprint()}

    def changed() -> bool:
        before = len(seen)
        seen.add(folder(root).fingerprint())
        return len(seen) > before

    assert not changed()
    save(root / "cat" / "0.png", 1000)  # another image
    assert changed()
    (root / "cat" / "1.png").rename(root / "dog" / "moved.png")  # another label
    assert changed()
    (root / "cat" / "2.png").unlink()  # one less
    assert changed()
    (root / "dog" / "again.png").write_bytes((root / "dog" / "3.png").read_bytes())  # one twice
    assert changed()
    (root / "dog").rename(root / "wolf")  # another name for a class
    assert changed()
    seen.add(folder(root, 0.3, 0.15).fingerprint())  # another split
    assert changed() is False
    assert len(seen) == 7


def test_the_fingerprint_of_vectors_depends_on_them() -> None:
    dataset = load_dataset("random", None, 0, 0)
    assert dataset.fingerprint() != Dataset(**{**vars(dataset), "labels": dataset.labels * 2}).fingerprint()


def test_a_class_whose_name_is_no_text_is_refused_before_anything_trains(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", 2)
    (root / "cat").rename(root / os.fsdecode(b"caf\xe9"))
    with pytest.raises(RequestError, match=r"expected class folders with names in UTF-8; 'caf.udce9' is not"):
        folder(root)


def test_the_classes_of_a_model_number_the_labels_by_name() -> None:
    images = [np.zeros((2, 2), np.uint8)] * 3
    split = {"train": np.arange(3), "val": np.arange(0), "test": np.arange(0)}
    one = Dataset("one", ("b", "a"), images, np.array([0, 1, 1]), split, ["x", "y", "z"])
    other = one.numbered_as(["a", "c", "b"])
    assert (other.classes, other.labels.tolist()) == (("a", "c", "b"), [2, 0, 0])
    assert other.fingerprint() == one.fingerprint()
    assert one.numbered_as(["a", "c"]) is one  # it has a class that they lack
    vectors = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    several = replace(one, labels=vectors).numbered_as(["a", "c", "b"])
    assert several.labels.tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert several.labels.dtype == np.float32
    assert several.fingerprint() == replace(one, labels=vectors).fingerprint()
