"""Where images come from: folders as people have them, and the sets that are built in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.data import sources
from finetune.data.sources import load_dataset
from finetune.data.sources.builtin import CLIPART
from finetune.errors import RequestError
from support.folders import check, fill, folder, names, save
from support.privilege import without_privilege

# Built in


def test_clipart_is_as_its_manifest_says() -> None:
    dataset = load_dataset("clipart", None, 0.5, 0.4)  # its split is its own
    check(dataset)
    with (CLIPART / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(dataset.images) == len(rows) > 700
    assert len(dataset.classes) == 10
    for side, indices in dataset.split.items():
        for i in indices[:20]:
            row = rows[i]
            assert dataset.images[i] == CLIPART / row["file"]
            assert (row["class"], row["split"]) == (dataset.classes[dataset.labels[i]], side)
    for side in sources.SPLITS:  # every class is on every side
        assert set(dataset.labels[dataset.split[side]]) == set(range(10))


def test_digits_are_scaled_to_eight_bits() -> None:
    dataset = load_dataset("digits", None, 0.15, 0.15)
    check(dataset)
    assert len(dataset.images) == 1797
    pixels = np.stack([np.asarray(image) for image in dataset.images])
    assert (pixels.min(), pixels.max(), pixels.dtype, pixels.shape[1:]) == (0, 255, np.uint8, (8, 8))
    assert dataset.classes[dataset.labels[0]] == "0"


def test_random_is_one_picture_with_a_vector_and_always_the_same() -> None:
    first, second = (load_dataset("random", None, 0.15, 0.15) for _ in range(2))
    assert first.counts() == {"train": 1, "val": 0, "test": 0}
    assert first.labels.shape == (1, 1000)
    assert first.fingerprint() == second.fingerprint()
    assert np.array_equal(first.images[0], second.images[0])


@pytest.mark.parametrize("name", ["clipart", "digits", "random"])
def test_a_root_for_what_is_built_in_is_refused(name: str) -> None:
    with pytest.raises(
        RequestError, match=rf"^data.root=mine: expected data=folder with it; data={name} brings"
    ):
        load_dataset(name, "mine", 0.15, 0.15)


# Folders


def test_a_folder_per_class(tmp_path: Path) -> None:
    dataset = folder(fill(tmp_path / "pets"))
    check(dataset)
    assert dataset.classes == ("cat", "dog")
    assert dataset.name == str(tmp_path / "pets")
    for path, label in zip(dataset.images, dataset.labels, strict=True):
        assert isinstance(path, Path)
        assert path.parent.name == dataset.classes[label]


def test_train_val_and_test_above_the_classes(tmp_path: Path) -> None:
    for side, count, first in (("train", 6, 0), ("val", 3, 6), ("test", 2, 9)):
        fill(tmp_path / side, count, first)
    dataset = folder(tmp_path)
    check(dataset)
    assert dataset.counts() == {"train": 12, "val": 6, "test": 4}
    for side, indices in dataset.split.items():
        assert {Path(str(dataset.images[i])).relative_to(tmp_path).parts[0] for i in indices} == {side}


def test_validation_is_taken_from_train_where_only_test_is_given(tmp_path: Path) -> None:
    fill(tmp_path / "train", 30)
    fill(tmp_path / "test", 5, 30)
    dataset = folder(tmp_path, val=0.3)
    check(dataset)
    assert names(dataset, "test") == sorted(2 * [f"{i}.png" for i in range(30, 35)])
    assert 8 <= len(dataset.split["val"]) <= 28
    assert len(dataset.split["train"]) + len(dataset.split["val"]) == 60


def test_only_train_and_val_leave_nothing_to_test(tmp_path: Path) -> None:
    fill(tmp_path / "train", 4)
    fill(tmp_path / "val", 2, 4)
    assert folder(tmp_path).counts() == {"train": 8, "val": 4, "test": 0}


def test_an_empty_side_counts_as_if_it_were_not_there(tmp_path: Path) -> None:
    fill(tmp_path / "train", 12)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    dataset = folder(tmp_path, val=0.3)
    check(dataset)
    assert len(dataset.split["val"]) > 0
    assert dataset.counts()["test"] == 0
    assert dataset.warnings == ("val has no images and counts as if it were not there",)


def test_folders_without_pictures_beside_train_do_no_harm(tmp_path: Path) -> None:
    fill(tmp_path / "train", 4)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert folder(tmp_path, val=0).counts()["train"] == 8


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "store", 10)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "cat").symlink_to(tmp_path / "store" / "cat")  # a linked class
    (tmp_path / "pets" / "dog").mkdir()
    for path in (tmp_path / "store" / "dog").iterdir():  # linked images
        (tmp_path / "pets" / "dog" / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(tmp_path / "pets")  # a linked root
    dataset = folder(tmp_path / "link")
    check(dataset)
    assert len(dataset.images) == 20
    assert dataset.fingerprint() == folder(tmp_path / "store").fingerprint()


def test_a_link_to_a_folder_above_does_not_go_round(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert len(folder(tmp_path).images) == 10


def test_a_broken_link_is_a_picture_that_decoding_reports(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "gone.png" in names(folder(tmp_path))


def test_what_is_no_picture_is_passed_over_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "README.txt").write_text("beside the classes")
    save(tmp_path / "cover.png", 99)  # an image beside the classes has none
    (tmp_path / "cat" / "Thumbs.db").touch()
    (tmp_path / "cat" / "notes").touch()
    (tmp_path / "cat" / ".DS_Store").touch()
    save(tmp_path / "cat" / ".hidden.png", 98)
    save(tmp_path / "cat" / ".cache" / "hidden.png", 97)
    save(tmp_path / ".git" / "hidden.png", 96)
    dataset = folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.images) == 10
    kinds = {".png": 1, ".txt": 1, ".db": 1, "notes": 1, ".DS_Store": 1}
    assert dataset.passed_over == kinds  # what lies in hidden folders is not looked at
    assert dataset.warnings == (f"1 image lies directly in {tmp_path.name}, in no class folder: left out",)


def test_what_could_be_read_with_an_extra_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.data.sources.walk.EXTENSIONS", (".png",))
    (tmp_path / "cow").mkdir()
    for name in ("a.HEIC", "b.heic", "c.ppm"):
        (tmp_path / "cow" / name).touch()
    with pytest.raises(
        RequestError, match=r"there are none \(3 files passed over: 2 .heic, 1 .ppm; pip inst"
    ):
        folder(tmp_path)


def test_every_case_of_extension_counts(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    for number, name in enumerate(("a.PNG", "b.Jpg", "c.JPEG", "d.WebP", "e.TIF", "f.BMP", "g.Gif")):
        save(tmp_path / "cat" / name, 50 + number)
    assert len(folder(tmp_path).images) == 11


def test_pictures_below_a_class_belong_to_it(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    save(tmp_path / "cat" / "tabby" / "young" / "deep.png", 77)
    dataset = folder(tmp_path)
    assert dataset.classes == ("cat", "dog")
    (index,) = (i for i, path in enumerate(dataset.images) if Path(str(path)).name == "deep.png")
    assert dataset.classes[dataset.labels[index]] == "cat"


def test_nested_folders_are_classes_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/tabby", "cat/black", "dog", "dog/large/grey")):
        for extra in range(3):
            save(tmp_path / name / f"{extra}.png", 10 * number + extra)
    save(tmp_path / "beside.png", 99)
    dataset = load_dataset("folder", str(tmp_path), 0.0, 0.0, nested=True)
    assert dataset.classes == ("cat/black", "cat/tabby", "dog", "dog/large/grey")
    for path, label in zip(dataset.images, dataset.labels, strict=True):
        assert Path(str(path)).parent == tmp_path / dataset.classes[label]
    assert dataset.passed_over.total() == 0
    assert dataset.warnings[0].startswith("1 image lies directly in ")


def test_nested_folders_below_train_and_test(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a/x", "train/a/y", "test/a/x", "test/a/y")):
        save(tmp_path / name / "0.png", number)
    dataset = load_dataset("folder", str(tmp_path), 0.0, 0.0, nested=True)
    assert dataset.classes == ("a/x", "a/y")
    assert dataset.counts() == {"train": 2, "val": 0, "test": 2}


def test_a_class_of_two_trains_and_is_told(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    for seed in range(8):
        for extra in range(2):
            save(tmp_path / f"rare {seed}" / f"{extra}.png", 200 + 2 * seed + extra)
    dataset = folder(tmp_path, 0.4, 0.4)
    (warning,) = dataset.warnings
    assert warning.startswith("classes with fewer than 3 images are used for training only: rare 0, rare 1")
    rare = np.flatnonzero(dataset.labels >= 2)
    assert len(rare) == 16
    assert set(rare) <= set(dataset.split["train"])


STRANGE = ("two words", "Käse & Brötchen", "猫", 'it\'s "so"', "a=b,c", "[x]", "100%", "-dash")


def test_strange_names_are_names(tmp_path: Path) -> None:
    root = tmp_path / "my 'own' images"
    for number, name in enumerate(STRANGE):
        for extra in range(2):
            save(root / name / f"{name} {extra}.png", 10 * number + extra)
    dataset = folder(root, 0, 0)
    check(dataset)
    assert dataset.classes == tuple(sorted(STRANGE))
    assert names(dataset) == sorted(f"{name} {extra}.png" for name in STRANGE for extra in range(2))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "pets", 3)
    assert len(load_dataset("folder", "~/pets", 0, 0).images) == 6


def test_classes_that_are_numbers_stand_in_their_order(tmp_path: Path) -> None:
    for number in range(12):
        for extra in range(2):
            save(tmp_path / str(number) / f"{extra}.png", 2 * number + extra)
    dataset = folder(tmp_path)
    assert dataset.classes == tuple(map(str, range(12)))
    assert [dataset.classes[i] for i in dataset.labels] == [Path(str(p)).parent.name for p in dataset.images]


def test_the_order_of_the_file_system_decides_nothing(tmp_path: Path) -> None:
    forward, backward = tmp_path / "forward", tmp_path / "backward"
    for root, seeds in ((forward, range(10)), (backward, range(9, -1, -1))):
        for seed in seeds:
            save(root / "cat" / f"{seed}.png", seed)
            save(root / "dog" / f"{seed}.png", 100 + seed)
    one, other = folder(forward), folder(backward)
    assert [Path(str(p)).name for p in one.images] == [Path(str(p)).name for p in other.images]
    assert list(one.digests) == list(other.digests)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    fill(tmp_path / "pets", 2).chmod(0)
    with (
        without_privilege(),
        pytest.raises(RequestError, match=r"^data.root=pets: pets cannot be read: Permission"),
    ):
        load_dataset("folder", "pets", 0.15, 0.15)
    (tmp_path / "pets").chmod(0o755)  # for the next to clean up


def test_a_picture_that_may_not_be_read_is_left_to_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    (fill(Path("pets"), 2) / "cat" / "0.png").chmod(0)
    with without_privilege():
        assert "0.png" in names(load_dataset("folder", "pets", 0, 0))


def test_a_folder_out_of_reach_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", 2)
    tmp_path.chmod(0)
    with without_privilege(), pytest.raises(RequestError, match=r"^data.root=pets: expected a folder"):
        load_dataset("folder", "pets", 0.15, 0.15)
    tmp_path.chmod(0o755)
