"""What an audit finds of faults that were planted, and what it writes."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from finetune.build import find_data
from finetune.config.compose import compose
from finetune.data.dataset import Dataset
from finetune.evaluation.findings import copies_together, probably_wrong
from finetune.learners import stratified_folds
from support.ended import Ended
from support.privilege import without_privilege
from support.runs import SMALL


def scene(seed: int) -> Image.Image:
    """Some rectangles, drawn by chance."""
    chance = np.random.default_rng(seed)
    pixels = np.full((64, 64, 3), chance.integers(150, 256, 3), np.uint8)
    for x, y, wide, high in chance.integers(0, 40, (6, 4)):
        pixels[y : y + high + 8, x : x + wide + 8] = chance.integers(0, 256, 3)
    return Image.fromarray(pixels)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Two classes in sides of their own, with one fault of each kind that needs no learning."""
    folder, number = tmp_path / "pets", 0
    for side, count in (("train", 12), ("val", 3), ("test", 3)):
        for label in ("cat", "dog"):
            (folder / side / label).mkdir(parents=True)
            for _ in range(count):
                scene(number).save(folder / side / label / f"{number}.png")
                number += 1
    cats, dogs = folder / "train" / "cat", folder / "train" / "dog"
    shutil.copy(cats / "0.png", cats / "exact.png")
    shutil.copy(cats / "1.png", dogs / "conflict.png")
    shutil.copy(cats / "2.png", folder / "test" / "cat" / "leak.png")
    scene(3).resize((57, 57)).save(cats / "near.jpg", quality=80)
    half = np.asarray(scene(300))[:, :32]  # of what is symmetric half of the frequencies are noise
    symmetric = Image.fromarray(np.concatenate([half, half[:, ::-1]], 1))
    symmetric.save(dogs / "symmetric.png")
    symmetric.resize((57, 57)).save(dogs / "symmetric.jpg", quality=80)
    scene(4).save(dogs / "across.jpg", quality=80)
    scene(5).save(folder / "val" / "cat" / "nearleak.jpg", quality=80)
    Image.new("RGB", (64, 64), (90, 200, 30)).save(cats / "blank.png")
    Image.fromarray(np.asarray(scene(200)) // 8).save(cats / "dark.png")
    scene(201).filter(ImageFilter.GaussianBlur(4)).save(cats / "blurred.png")
    scene(202).resize((128, 64), Image.Resampling.NEAREST).save(cats / "cropped.png")
    (cats / "broken.png").write_bytes(b"none")
    return folder


def findings(folder: Path) -> set[tuple[str, str, str]]:
    with (folder / "audit.csv").open(newline="") as file:
        return {
            (row["finding"], Path(row["path"]).name, Path(row["other path"]).name)
            for row in csv.DictReader(file)
        }


def test_each_kind_of_fault_is_found_and_the_rest_can_be_read_again(
    command: Callable[..., Ended], faulty: Path
) -> None:
    before = {file: file.read_bytes() for file in faulty.rglob("*.*")}
    wanted = ("data=folder", f"data.root={faulty}", SMALL, "weights=random", "data.image_size=64")
    ended = command("audit", *wanted, "--write", "clean.csv", "--drop", "exact,leaks,near")
    assert ended.code == 0, ended.err
    found = findings(Path("audit"))
    assert {one for one in found if one[0] not in ("labels", "outliers")} == {
        ("exact", "exact.png", "0.png"),
        ("conflict", "conflict.png", "1.png"),
        ("conflict", "1.png", "conflict.png"),
        ("leaks", "2.png", "leak.png"),
        ("leaks", "5.png", "nearleak.jpg"),
        ("near", "near.jpg", "3.png"),
        ("near", "symmetric.png", "symmetric.jpg"),
        ("across", "across.jpg", "4.png"),
        ("blank", "blank.png", ""),
        ("dark", "dark.png", ""),
        ("blurred", "blurred.png", ""),
        ("cropped", "cropped.png", ""),
        ("broken", "broken.png", ""),
    }
    page = Path("audit/audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 18
    assert "://" not in page
    rest = find_data(compose(["data=csv", "data.root=clean.csv"]))
    gone = {"exact.png", "2.png", "5.png", "near.jpg", "symmetric.png", "broken.png"}
    assert {file.name for file in before} - {Path(str(image)).name for image in rest.images} == gone
    assert rest.own_split
    assert {file: file.read_bytes() for file in faulty.rglob("*.*")} == before


def test_sides_that_the_toolkit_would_draw_leak_nothing(command: Callable[..., Ended], faulty: Path) -> None:
    for name in ("audit", "audit-2"):  # of a folder by its path alone; none is overwritten
        ended = command("audit", str(faulty / "train"), SMALL, "weights=random", "data.image_size=64")
        assert ended.code == 0, ended.err
        assert "\nblank    1 image showing nothing: cat/blank.png\n" in ended.out
        assert f"written  {name}/audit.html and {name}/audit.csv" in ended.out
    found = findings(Path("audit"))
    assert found == findings(Path("audit-2"))
    assert ("near", "near.jpg", "3.png") in found
    assert not [one for one in found if one[0] == "leaks"]


def test_groups_are_written_and_of_folds_no_sides(command: Callable[..., Ended], few_pictures: Path) -> None:
    images = sorted(few_pictures.rglob("*.png"))
    rows = [f"{one},{one.parent.name},{one.parent.name} {int(one.stem) % 4}" for one in images]
    Path("of.csv").write_text("\n".join(["path,label,animal", *rows]))
    asked = ("of.csv", "data.group_column=animal", SMALL, "weights=random", "data.image_size=32")
    for name, draw, header in (
        ("folded.csv", "data.folds=3", "path,label,group"),
        ("split.csv", "data.folds=null", "path,label,split,group"),
    ):
        ended = command("audit", *asked, draw, "--write", name)
        assert ended.code == 0, ended.err
        assert f"for data=csv data.root={name} data.group_column=group" in ended.out
        assert Path(name).read_text().splitlines()[0] == header
        again = compose(["data=csv", f"data.root={name}", "data.group_column=group", draw])
        first = find_data(compose([*asked[:2], draw]))
        assert find_data(again).units == first.units


def test_a_setting_may_be_longer_than_a_files_name(command: Callable[..., Ended]) -> None:
    ended = command("audit", "data=folder", f"data.root={'x/' * 200}x" + "y" * 300, "data.split=none")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: data.root=x/x/")
    assert "expected a folder; there is none" in ended.err


def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(
    command: Callable[..., Ended], few_pictures: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    with without_privilege():
        ended = command("audit", str(few_pictures))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: --out=.: cannot be written to: Permission denied\n"


@pytest.mark.slow
def test_a_run_is_audited_with_its_own_model(
    command: Callable[..., Ended],
    finished_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished_run("cache=disk", "precision=32", "cache_dir=cache")
    monkeypatch.chdir(run.parent)
    ended = command("audit", "run", "--out", str(tmp_path / "audit"))
    assert ended.code == 0, ended.err
    assert f"weights: {Path('run')}" in ended.out
    assert (tmp_path / "audit" / "audit.html").exists()


@pytest.mark.parametrize("units", [(), tuple(f"key {i // 2 * 2}" for i in range(20))])
def test_near_copies_are_solved_for_together_with_all_that_stays_with_them(units: tuple[str, ...]) -> None:
    digests = [f"{i:02}" for i in range(20)]
    split = {"train": np.arange(20)}
    data = Dataset("toy", ("a", "b"), digests, np.arange(20) % 2, split, digests, units=units)  # type: ignore[arg-type]
    for near, members in (([(0, 2, 1.0), (1, 2, 1.0)], {0, 1, 2}), ([], {0})):
        wanted = members | {i ^ 1 for i in members} if units else members
        kept = copies_together(data, near)
        assert {i for i in range(20) if kept.digests[i] == kept.digests[0]} == wanted
        for _, held in stratified_folds(kept, 0):
            assert wanted <= {*held.tolist()} or not wanted & {*held.tolist()}


def test_wrong_labels_are_told_for_what_their_class_is_usually_sure_of() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    answers = np.where(np.eye(2, dtype=bool)[labels], 0.9, 0.1)
    answers[3] = 0.05, 0.95
    answers[15] = 0.55, 0.45  # in doubt, not wrong: class 0 is commonly at 0.9
    assert [one[:2] for one in probably_wrong(answers, labels)] == [(3, 1)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--drop", "twins"), "--drop"),
        (("--write", "clean.txt"), "--write=clean.txt: expected a new .csv file"),
        (("--write", "there.csv"), "--write=there.csv: expected a new .csv file"),
        (("one", "two"), "two: expected one run"),
        (("--out", "done"), "--out=done: expected a new folder; there is an audit in this one"),
        (("--out", "there/audit"), "--out=there/audit: cannot be made"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    command: Callable[..., Ended], arguments: tuple[str, ...], told: str
) -> None:
    Path("there").write_text("")
    Path("there.csv").write_text("")
    Path("done").mkdir()
    Path("done/audit.html").touch()
    ended = command("audit", *arguments)
    assert ended.code == 2
    assert told in ended.err
    assert ended.err.count("\n") == 1
