"""`finetune explain`: the files it writes, what it says, and pictures it cannot read."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.evaluation.overlay import answers, overlay, pair
from finetune.runs.open import open_run
from support.ended import Ended
from support.runs import newest

Command = Callable[..., Ended]


@pytest.fixture
def run(finished_run: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run("data.image_size=64", "epochs=1"), tmp_path / "run"))


@pytest.mark.slow
def test_a_picture_each_and_a_grid(command: Command, run: Path, few_pictures: Path) -> None:
    ended = command("explain", str(run), f"{few_pictures}/*/?.png")
    assert (ended.code, ended.err) == (0, "")
    assert "30 images, Grad-CAM at layer4 (2 x 2)" in ended.out
    assert f"{run}/explain, the first 24 in grid.png" in ended.out
    names = {path.name for path in (run / "explain").iterdir()}
    assert names == {"grid.png", *(f"{n}{m}.png" for n in range(10) for m in ("", "-2", "-3"))}
    with Image.open(run / "explain" / "0.png") as tile, Image.open(run / "explain" / "grid.png") as sheet:
        assert tile.size == (2 * 160 + 4, 160 + 2 * 16)
        assert sheet.size == (4 * (tile.width + 16) + 16, 6 * (tile.height + 16) + 16)


def test_into_another_folder_from_the_latest_run(command: Command, run: Path, few_pictures: Path) -> None:
    Path("outputs").mkdir()
    Path("outputs/latest").write_text(f"{run}\n")
    assert newest() == run
    shutil.copy(few_pictures / "red" / "7.png", "lynx.png")
    named = (f"{few_pictures}/red/7.png", "lynx.png")
    assert command("explain", "latest", *named, "--out", "seen/here").code == 0
    assert sorted(path.name for path in Path("seen/here").iterdir()) == ["7.png", "grid.png", "lynx.png"]
    tiles = [np.asarray(Image.open(Path("seen/here", name))) for name in ("7.png", "lynx.png")]
    assert np.array_equal(tiles[0][:160], tiles[1][:160])
    assert not np.array_equal(tiles[0][160:], tiles[1][160:])  # each has its file's name


def test_pictures_that_cannot_be_read_are_named_and_the_others_done(
    command: Command, run: Path, few_pictures: Path
) -> None:
    for name in ("grid.png", "good.png"):
        shutil.copy(few_pictures / "blue" / "1.png", name)
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:500])
    Path("notes.txt").write_text("none")
    ended = command("explain", str(run), "cut.png", "good.png", "notes.txt", "grid.png", "--out", "seen")
    assert ended.code == 1
    assert ended.err.startswith("error: 2 of 4 images cannot be read: cut.png (")
    assert ended.err.endswith("notes.txt (not an image, or of an unknown format)\n")
    assert ended.err.count("\n") == 1
    assert sorted(path.name for path in Path("seen").iterdir()) == ["good.png", "grid-2.png", "grid.png"]
    alone = command("explain", str(run), "notes.txt", "--out", "none")
    assert alone.code == 1
    assert list(Path("none").iterdir()) == []


def test_wrong_requests(command: Command, run: Path, few_pictures: Path) -> None:
    Path("empty").mkdir()
    Path("file").write_text("")
    picture = str(few_pictures / "red" / "1.png")
    Path("mine").mkdir()
    shutil.copy(picture, "mine")
    for arguments, line in (
        (
            (str(run), "nowhere.png"),
            "nowhere.png: expected a file, a folder, a glob or -",
        ),
        ((str(run), "empty"), "empty: expected images in this folder"),
        (("empty", picture), "empty: expected the folder of a run"),
        ((str(run), picture, "--out", "file"), "--out=file: cannot be made: File exists"),
        ((str(run), "mine/1.png", "--out", "./mine"), "--out mine: expected another folder than the images'"),
    ):
        ended = command("explain", *arguments)
        assert ended.code == 2
        assert ended.err.startswith(f"error: {line}")
        assert ended.err.count("\n") == 1


def test_answers_are_named_and_calibrated(run: Path) -> None:
    logits = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 9.0]])
    saved = replace(open_run(str(run)), classes=("a", "b"), outputs=3, summary=None)
    assert answers(saved, logits) == ["b 91%", "output 2 100%"]
    calmer = replace(saved, summary={"calibration": {"temperature": 3.0}})
    assert answers(calmer, logits) == ["b 58%", "output 2 91%"]
    bce = saved.settings.model_copy(update={"loss": "bce"})
    assert answers(replace(saved, settings=bce), logits) == ["b 95%", "output 2 100%"]


def test_heat_is_yellow_and_cold_is_blue() -> None:
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    heat = torch.zeros(8, 8)
    heat[:, 4:] = 1
    seen = np.asarray(overlay(white, heat)).astype(int)
    assert seen[0, 0].tolist() == [68, 1, 84]
    assert seen[0, 7].tolist() == [253, 231, 37]
    dark = np.asarray(overlay(torch.zeros_like(white), heat)).astype(int)
    assert (dark.sum(2) < 0.5 * seen.sum(2)).all()  # the picture shows through


def test_a_long_name_is_cut_to_the_width() -> None:
    picture, heat = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32)
    tile = np.asarray(pair(picture, heat, "a name that is far too long for one line of text below 97%"))
    assert tile[160:, :300].min() < 128
    assert tile[160:, 322:].min() == 255
