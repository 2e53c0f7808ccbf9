"""Images that belong together stay on one side: of a split, of folds, of what is validated with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finetune.data.digests import content_digest
from finetune.data.sources import load_dataset
from finetune.data.splits import find_units, number_folds, split_by_content
from finetune.errors import RequestError
from finetune.report.predictions import read_predictions
from finetune.training.intervals import of_share
from support.ended import Ended
from support.folders import check, fill, save
from support.runs import SMALL, newest, summary_of

MANY = [content_digest(str(number).encode()) for number in range(600)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty patients with three images each, of one of two classes."""
    rows = ["path,label,patient,age"]
    for number in range(120):
        save(tmp_path / f"{number}.png", number)
        patient = number // 3
        rows.append(f"{number}.png,{'cat' if patient % 2 else 'dog'},p{patient},{number}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "labels.csv"


def patients(split: dict[str, np.ndarray]) -> dict[str, set[int]]:
    return {side: {int(row) // 3 for row in rows} for side, rows in split.items()}


@pytest.mark.parametrize("draw", [{}, {"split_seed": 3}, {"folds": 4, "fold": 1}])
def test_a_patient_is_on_one_side(table: Path, draw: dict[str, int]) -> None:
    dataset = load_dataset("csv", str(table), 0.2, 0.2, group_column="patient", **draw)
    check(dataset)
    sides = patients(dataset.split)
    assert all(sides.values())
    assert sum(map(len, sides.values())) == 40  # each of them once
    parted = load_dataset("csv", str(table), 0.2, 0.2, **draw)
    assert sum(map(len, patients(parted.split).values())) > 40
    assert "40 groups; images of none: 0" in dataset.notes


def test_intervals_are_those_of_groups(train: Callable[..., Ended], table: Path) -> None:
    how = ("data.image_size=32", SMALL, "weights=random", "data.test_fraction=0.4", "data.val_fraction=0.2")
    ended = train(str(table), "data.group_column=patient", *how, "epochs=1")
    assert ended.code == 0, ended.err
    dataset = load_dataset("csv", str(table), 0.2, 0.4, group_column="patient")
    tested = dataset.split["test"]
    assert f" on {len(tested)} images of {len(tested) // 3} groups\n" in ended.out
    answers = [one for one in read_predictions(newest()) if one.split == "test"]
    expected = of_share([one.right for one in answers], np.unique(tested // 3, return_inverse=True)[1])
    assert expected != of_share([one.right for one in answers], None)
    assert tuple(summary_of(newest())["test"]["intervals"]["accuracy"]) == expected


def test_columns_that_are_not_read_are_named(table: Path) -> None:
    (note,) = load_dataset("csv", str(table), 0.2, 0.2).notes
    advice = "data.group_column=patient keeps images of one patient on one side"
    assert note == f"columns that are not read: patient, age; {advice}"
    notes = load_dataset("csv", str(table), 0.2, 0.2, group_column="patient").notes
    assert notes[0] == "columns that are not read: age"


def test_another_column_is_no_group(table: Path) -> None:
    table.write_text("\n".join(row.rsplit(",", 2)[0] for row in table.read_text().splitlines()))
    with pytest.raises(RequestError, match=r"a column owner \(data\.group_column\); there are path, label$"):
        load_dataset("csv", str(table), 0.2, 0.2, group_column="owner")


def test_an_image_without_a_patient_stands_alone(table: Path) -> None:
    table.write_text(table.read_text().replace(",p7,", ",nan,"))
    dataset = load_dataset("csv", str(table), 0.2, 0.2, group_column="patient")
    assert len({dataset.units[row] for row in (21, 22, 23)}) == 3
    assert "39 groups; images of none: 3" in dataset.notes


def test_groups_that_the_own_split_parts(table: Path) -> None:
    rows = table.read_text().splitlines()
    sides = ["split", *("test" if number in (0, 5, 118) else "train" for number in range(120))]
    table.write_text("\n".join(f"{row},{side}" for row, side in zip(rows, sides, strict=True)))
    dataset = load_dataset("csv", str(table), 0.2, 0.2, group_column="patient")
    told = "3 of 40 groups are on two sides of the split (p0, p1, p39)"
    assert told in dataset.warnings
    val, train = (patients(dataset.split)[side] for side in ("val", "train"))
    assert val
    assert not val & train  # what is taken out of train parts none
    with pytest.raises(RequestError, match=r"without a split of their own; data\.split=none leaves theirs"):
        load_dataset("csv", str(table), 0.2, 0.2, folds=3)
    drawn = [load_dataset("csv", str(table), 0.2, 0.2, split_seed=seed).split["val"] for seed in (1, 2)]
    assert set(drawn[0]) != set(drawn[1])  # what is taken out of train
    table.write_text(table.read_text().replace(",train", ",val", 1))
    with pytest.raises(
        RequestError, match=r"data\.split_seed=1: expected images without a split of their own"
    ):
        load_dataset("csv", str(table), 0.2, 0.2, split_seed=1)


def test_a_folder_below_a_class_is_a_group_whatever_the_class(tmp_path: Path) -> None:
    for number in range(60):
        name = ("cat", "dog")[number % 2]
        save(tmp_path / name / f"film {number // 6}" / f"{number}.png", number)
    save(tmp_path / "cat" / "alone.png", 99)
    dataset = load_dataset("folder", str(tmp_path), 0.2, 0.2, group="parent")
    films = {
        Path(str(image)).parent.name: unit for image, unit in zip(dataset.images, dataset.units, strict=True)
    }
    assert len(films) == 11
    assert len(set(dataset.units)) == 11
    assert "10 groups; images of none: 1" in dataset.notes
    flat = load_dataset("folder", str(tmp_path / "cat"), 0.2, 0.2, group="parent")
    assert (flat.notes[-1], list(flat.groups)) == ("0 groups", [])
    assert any(line.startswith("no image is of a group: each is split by itself") for line in flat.warnings)
    (tmp_path / "cat" / "alone.png").unlink()  # the same folders in each class are no sides of a split
    for name in ("cat", "dog"):
        for film in range(3):
            save(tmp_path / name / f"shared {film}" / "one.png", 200 + film)
    assert load_dataset("folder", str(tmp_path), 0.2, 0.2, group="parent").classes == ("cat", "dog")
    with pytest.raises(RequestError, match=r"data\.group=parent: expected data\.nested=false"):
        load_dataset("folder", str(tmp_path), 0.2, 0.2, group="parent", nested=True)
    with pytest.raises(RequestError, match=r"data\.group=parent: expected data=folder"):
        load_dataset("digits", None, 0.2, 0.2, group="parent")


def test_groups_that_share_an_image_are_one() -> None:
    digests = ["0a", "0b", "0b", "0c", "0d", "0d"]
    units = find_units(digests, ["x", "x", "y", "y", "", "z"], None)
    assert len(set(units[:4])) == 1
    assert units[4] == units[5] != units[0]


def test_no_group_and_no_seed_is_the_split_of_old() -> None:
    assert find_units(MANY, (), None) == find_units(MANY, (), 0) == MANY
    redrawn = [split_by_content(find_units(MANY, (), seed), np.zeros(600, int), 0.1, 0.2) for seed in (1, 2)]
    assert set(redrawn[0]["test"]) != set(redrawn[1]["test"])


def test_folds_are_stratified_and_each_image_is_in_one() -> None:
    labels = np.repeat([0, 1, 2], [300, 200, 100])
    folds = number_folds(MANY, labels, ["a", "b", "c"], 5)
    for label, count in enumerate((60, 40, 20)):
        assert np.bincount(folds[labels == label]).tolist() == [count] * 5
    turned = number_folds(MANY[::-1], labels[::-1], ["a", "b", "c"], 5)
    assert (turned[::-1] == folds).all()  # the order of the files decides nothing


def test_a_class_that_cannot_be_parted(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    save(tmp_path / "owl" / "one.png", 77)
    with pytest.raises(RequestError, match=r"data\.folds=3: expected at least two different .* with owl"):
        load_dataset("folder", str(tmp_path), 0, 0, folds=3)


def test_clip_art_keeps_families_whole_when_it_is_redrawn() -> None:
    usual = load_dataset("clipart", None, 0.15, 0.15)
    redrawn = load_dataset("clipart", None, 0.15, 0.15, split_seed=1)
    assert not usual.units
    assert len(set(redrawn.units)) == 521
    assert set(usual.split["test"]) != set(redrawn.split["test"])
    folded = load_dataset("clipart", None, 0.15, 0.15, folds=5)
    assert folded.counts() == {"train": 790, "val": 0, "test": 0}
    assert folded.folds is not None
    assert min(np.bincount(folded.folds)) > 150
