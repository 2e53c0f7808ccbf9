"""Folders as people have them: sides under any spelling, one level off, with what systems and links add."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.data.dataset import Dataset
from finetune.data.sources import load_dataset
from finetune.errors import RequestError
from support.folders import check, fill, folder, save


def measured(root: Path) -> Dataset:
    return load_dataset("folder", str(root), 0.15, 0.15, measured=True)


# Sides of the split


@pytest.mark.parametrize(
    "names", ["Training Testing", "Train Test", "TRAIN VAL", "training validation testing"]
)
def test_sides_are_known_by_any_spelling(tmp_path: Path, names: str) -> None:
    for first, name in enumerate(names.split()):
        fill(tmp_path / name, 6, 6 * first)
    dataset = folder(tmp_path)
    check(dataset)
    assert dataset.classes == ("cat", "dog")
    assert dataset.own_split
    test = "est" in names
    assert dataset.counts()["test"] == 12 * test
    assert dataset.counts()["val"] == 12 or test


def test_two_folders_for_one_side_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "validation"):
        fill(tmp_path / name, 2)
    with pytest.raises(RequestError, match=r"one folder for val; there are val and validation$"):
        folder(tmp_path)


def test_folders_that_hold_the_same_folders_are_no_classes_without_a_word(tmp_path: Path) -> None:
    for first, name in enumerate(("seg_train", "seg_test")):
        fill(tmp_path / name, 6, 6 * first)
    save(tmp_path / "seg_pred" / "0.png", 99)
    with pytest.raises(RequestError, match=r"seg_test, seg_train hold the same folders \(cat, dog\)"):
        folder(tmp_path)
    assert load_dataset("folder", str(tmp_path), 0, 0, split="none").classes == (
        "seg_pred",
        "seg_test",
        "seg_train",
    )
    assert "seg_test/cat" in load_dataset("folder", str(tmp_path), 0, 0, nested=True).classes


def test_sides_of_other_names_need_not_hold_quite_the_same(tmp_path: Path) -> None:
    for name in ("seg_train", "seg_test"):
        fill(tmp_path / name, 3, 3 * (name == "seg_test"))
    save(tmp_path / "seg_train" / "eel" / "0.png", 90)
    with pytest.raises(RequestError, match=r"seg_test, seg_train hold the same folders \(cat, dog, eel\)"):
        folder(tmp_path)
    save(tmp_path / "seg_test" / "stray.png", 91)
    (told, *_) = folder(tmp_path).warnings
    assert told.startswith("seg_test, seg_train hold the same folders (cat, dog, eel) and count as classes")


def test_sides_below_the_classes_and_classes_below_a_folder_are_told(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/train", "cat/test", "dog/train", "dog/test")):
        save(tmp_path / "above" / name / "0.png", number)
    with pytest.raises(RequestError, match="expected train, val and test above the classes, not in them"):
        folder(tmp_path / "above")
    save(tmp_path / "above" / "cat" / "raw" / "0.png", 4)
    save(tmp_path / "above" / "dog" / "raw" / "0.png", 5)
    with pytest.raises(RequestError, match=r"not in them; data.split=none takes them for parts of their cl"):
        folder(tmp_path / "above")
    for first, side in enumerate(("train", "test")):
        fill(tmp_path / "deep" / side / "images", 3, 3 * first)
    with pytest.raises(
        RequestError, match=r"only images; data.nested=true takes the folders in it for classes"
    ):
        folder(tmp_path / "deep")


def test_a_side_in_a_class_beside_its_images_is_taken_for_part_of_it_and_told(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    (tmp_path / "cat" / "dev").mkdir()  # without an image
    assert folder(tmp_path).warnings == ()
    for number, side in enumerate(("test", "train")):
        save(tmp_path / "cat" / side / "0.png", 90 + number)
    told = "cat/test, cat/train: taken as images of their class; sides of the split lie above the classes"
    assert folder(tmp_path).warnings == (f"{told} (test/cat); data.split=none: as meant",)
    meant = load_dataset("folder", str(tmp_path), 0, 0, split="none")
    assert (meant.warnings, len(meant.images)) == ((), 18)


def test_a_link_left_out_is_the_reason_where_one_class_is_left(tmp_path: Path) -> None:
    save(tmp_path / "store" / "0.png", 0)
    (tmp_path / "data").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store")
    with pytest.raises(RequestError, match=r"there is only cat; links to folders .* left out: .*dog"):
        folder(tmp_path / "data")


def test_classes_that_each_keep_their_images_in_a_folder_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("n01", "n02")):  # as Tiny ImageNet has them
        for extra in range(3):
            save(tmp_path / name / "images" / f"{extra}.png", 3 * number + extra)
    assert folder(tmp_path).classes == ("n01", "n02")


@pytest.mark.parametrize("side", ["val", "test"])
def test_images_directly_in_a_side_are_left_out_and_told(tmp_path: Path, side: str) -> None:
    fill(tmp_path / "train", 12)
    for number in range(9):
        save(tmp_path / side / f"{number}.png", 100 + number)
    dataset = folder(tmp_path, val=0.3)
    check(dataset)
    assert dataset.warnings == (f"9 images lie directly in {side}, in no class folder: left out",)
    assert 0 < dataset.counts()["val"] < 24 == len(dataset.images)
    assert (dataset.counts()["test"], dataset.passed_over) == (0, {})


def test_a_side_of_an_unknown_class_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path / "train", 12)
    for number in range(9):
        save(tmp_path / "test" / "unknown" / f"{number}.png", 100 + number)
    dataset = folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.warnings == ("test has no class of those to train on, only unknown: 9 images left out",)
    assert len(dataset.images) == 24


@pytest.mark.parametrize("names", ["bus car train", "test train"])
def test_a_class_may_be_called_train(tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names.split()):
        for extra in range(3):
            save(tmp_path / name / f"{extra}.png", 3 * number + extra)
    with pytest.raises(RequestError, match=r"data.split=none takes "):
        folder(tmp_path)
    dataset = load_dataset("folder", str(tmp_path), 0, 0, split="none")
    assert dataset.classes == tuple(names.split())
    assert dataset.counts()["train"] == len(dataset.images) == 3 * len(names.split())


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "valid" / f"{number}.png", number)
        save(tmp_path / "invalid" / f"{number}.png", 10 + number)
    assert folder(tmp_path).classes == ("invalid", "valid")


def test_sides_beside_something_else_are_no_classes_without_a_word(tmp_path: Path) -> None:
    fill(tmp_path / "Training", 3)
    save(tmp_path / "Testing" / "cat" / "0.png", 90)
    save(tmp_path / "more" / "0.png", 91)
    with pytest.raises(
        RequestError, match=r"Training, Testing, more; .* data.split=folders leaves out more$"
    ):
        folder(tmp_path)


def test_what_lies_beside_sides_may_be_left_out(tmp_path: Path) -> None:
    for first, name in enumerate(("train", "test", "more")):
        fill(tmp_path / name, 4, 4 * first)
    dataset = load_dataset("folder", str(tmp_path), 0, 0, split="folders")
    assert dataset.counts() == {"train": 8, "val": 0, "test": 8}
    assert dataset.warnings == ("left out beside train, val and test: more",)
    with pytest.raises(RequestError, match=r"expected train, val or test in it, for data.split=folders"):
        load_dataset("folder", str(tmp_path / "more"), 0, 0, split="folders")
    with pytest.raises(RequestError, match=r"^data.split=folders: expected data=folder with it$"):
        load_dataset("csv", str(tmp_path), 0, 0, split="folders")


# One level off


@pytest.mark.parametrize(
    ("made", "asked", "place"),
    [
        (("a/PetImages",), "a", "a/PetImages"),
        (("a/b/PetImages",), "a", "a/b/PetImages"),
        (("a/archive/train", "a/archive/test"), "a", "a/archive"),
        (("a/images/train", "a/images/val"), "a", "a/images"),
        (("a/pets",), "a/pets/cat", "a/pets"),
        (("a/train", "a/test"), "a/train/cat", "a"),
    ],
)
@pytest.mark.parametrize("load", [folder, measured])
def test_one_level_off_is_told_with_the_place_of_the_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: tuple[str, ...],
    asked: str,
    place: str,
    load: object,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in made:
        fill(Path(name), 3)
    (Path("a") / "labels").mkdir()
    assert callable(load)
    with pytest.raises(RequestError, match=f"; the classes seem to lie in {place}: data.root={place}$"):
        load(Path(asked))


def test_the_working_folder_is_not_taken_for_one_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    for root in ("cat", str(tmp_path / "cat")):
        with pytest.raises(RequestError, match=r"in it; there are none$"):
            measured(Path(root))


# Measuring


def test_what_nothing_could_learn_from_can_be_measured(tmp_path: Path) -> None:
    fill(tmp_path / "few" / "test", 3)
    fill(tmp_path / "holes", 3)
    (tmp_path / "holes" / "bird").mkdir()
    shutil.copytree(tmp_path / "holes" / "cat", tmp_path / "one" / "cat")
    for name, told in (("few", "only those of test"), ("holes", "none in bird"), ("one", "only cat")):
        with pytest.raises(RequestError, match=f"{told}$"):
            folder(tmp_path / name)
    assert measured(tmp_path / "few").counts() == {"train": 0, "val": 0, "test": 6}
    assert len(measured(tmp_path / "holes").images) == 6
    assert measured(tmp_path / "one").classes == ("cat",)
