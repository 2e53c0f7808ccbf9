"""The same bytes on two sides of the split, or under two labels: told once, with counts and names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import finetune
from finetune.data.duplicates import leaked
from finetune.data.sources import load_dataset
from support.folders import fill, folder
from support.runs import SMALL


def test_images_of_train_in_test_and_under_another_label_are_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", 6)
    fill(tmp_path / "val", 2, 6)
    for number in range(4):
        for name in ("cat", "dog"):
            (tmp_path / "test" / name).mkdir(parents=True, exist_ok=True)
            side = "val" if number == 3 else "train"
            shutil.copy(
                tmp_path / side / name / f"{6 if number == 3 else number}.png",
                tmp_path / "test" / name / f"{number}.png",
            )
    shutil.copy(tmp_path / "train" / "cat" / "5.png", tmp_path / "train" / "dog" / "x.png")
    dataset = folder(tmp_path)
    assert {side: len(rows) for side, rows in leaked(dataset).items()} == {"val": 0, "test": 8}
    assert dataset.warnings == (
        "the same bytes twice: 8 of 8 test images on another side, too"
        f" ({tmp_path}/test/cat/0.png and {tmp_path}/train/cat/0.png); 1 of 25 images with another label"
        f" elsewhere ({tmp_path}/train/dog/x.png and {tmp_path}/train/cat/5.png)",
    )


def test_a_path_twice_in_a_table_with_two_labels_is_told_and_with_one_it_is_not(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    rows = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(6)]
    table = tmp_path / "labels.csv"
    for extra, told in (("cat/1.png,dog", 1), ("cat/1.png,cat", 0)):
        table.write_text("\n".join(["path,label", *rows, extra]))
        warnings = load_dataset("csv", str(table), 0.15, 0.15).warnings
        assert len(warnings) == told
        assert "1 of 13 images with another label elsewhere" in "".join(warnings) or not told


def test_several_labels_are_compared_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    rows = ["cat/0.png,a|b", "cat/0.png,b|a", "cat/1.png,a", "dog/1.png,b", "cat/1.png,a|b"]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (told,) = load_dataset("csv", str(tmp_path / "labels.csv"), 0, 0).warnings[-1:]
    assert "1 of 5 images with another label elsewhere" in told


def test_what_the_toolkit_splits_never_leaks(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    for number in range(20):
        shutil.copy(tmp_path / "cat" / f"{number}.png", tmp_path / "cat" / f"copy {number}.png")
    dataset = folder(tmp_path, 0.3, 0.3)
    assert leaked(dataset) == {"val": {}, "test": {}}
    assert not dataset.warnings


def test_the_summary_has_how_many_leaked_and_the_terminal_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("pets") / "train", 6)
    shutil.copytree(Path("pets") / "train", Path("pets") / "test")
    Path("pets/test/cat/5.png").replace("pets/test/dog/6.png")
    data = {"root": "pets", "image_size": 32}
    quick = {"model": SMALL.partition("=")[2], "weights": "random", "cache": "memory", "epochs": 1}
    run = finetune.fit(data, folder="run", **quick)
    assert run.summary["data"]["leaked"] == {"val": 0, "test": 12}
    assert capsys.readouterr().out.count("12 of 12 test images on another side, too (pets/test") == 1
    told = "12 of 12 test images on another side of the split, too; 1 image with another label elsewhere."
    assert f"The same bytes are there twice: {told}" in Path("run/report.html").read_text()
