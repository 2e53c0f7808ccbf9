"""Whole runs on pictures as people have them: broken, unbalanced, with several labels each."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.config.compose import compose
from finetune.data import reader
from support.runs import QUICK, newest, summary_of

Train = Callable[..., Any]
TINY = tuple(knob for knob in QUICK if not knob.startswith("data=") and not knob.startswith("data.root="))


def noise(path: Path, seed: int, size: tuple[int, int] = (32, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """Sixty good pictures in `pictures` and a bad one of each kind; the reason by the path."""
    for seed in range(30):
        noise(tmp_path / "pictures" / "a" / f"{seed}.png", seed)
        noise(tmp_path / "pictures" / "b" / f"{seed}.png", 100 + seed)
    content = Path("pictures/a/0.png").read_bytes()
    Path("pictures/a/empty.png").touch()
    Path("pictures/a/cut off.jpg").write_bytes(noise(tmp_path / "whole.jpg", 7).read_bytes()[:900])
    Path("pictures/a/tëxt.webp").write_text("no picture")
    Path("pictures/b/flipped.png").write_bytes(content[:700] + bytes([content[700] ^ 255]) + content[701:])
    Path("pictures/b/gone.png").symlink_to("nowhere.png")
    noise(tmp_path / "pictures" / "b" / "pixel.gif", 8, (1, 1))
    noise(tmp_path / "pictures" / "b" / "strip.png", 9, (1, 20_000))
    noise(tmp_path / "pictures" / "b" / "really a png.jpg", 10).rename("pictures/b/good.png")
    return {
        "pictures/a/cut off.jpg": "image file is truncated",
        "pictures/a/empty.png": "the file is empty",
        "pictures/a/tëxt.webp": "not an image, or of an unknown format",
        "pictures/b/flipped.png": "broken",
        "pictures/b/gone.png": "no such file or directory",
        "pictures/b/pixel.gif": "1 x 1 pixels, too thin to show anything",
        "pictures/b/strip.png": "1 x 20000 pixels, too thin to show anything",
    }


@pytest.mark.parametrize("cache", ["memory", pytest.param("none", marks=pytest.mark.slow)])
def test_bad_pictures_are_left_out_listed_and_counted(
    train: Train, broken: dict[str, str], cache: str
) -> None:
    ended = train(*QUICK, "data.bad_images=skip", f"cache={cache}")
    assert (ended.code, ended.err) == (0, "")
    with (newest() / "skipped.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert listed.keys() == broken.keys()
    assert all(reason in listed[path] for path, reason in broken.items())
    data = summary_of(newest())["data"]
    assert (data["skipped"], data["train"] + data["val"] + data["test"]) == (7, 61)
    assert "7 images are broken and left out, listed in skipped.csv" in ended.out


@pytest.mark.slow
def test_bad_pictures_are_known_the_next_time(
    train: Train, broken: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*QUICK, "data.bad_images=skip", "cache_dir=cache", "epochs=1")
    train(*options)
    first = (newest() / "skipped.csv").read_text(encoding="utf-8")
    tried, really = [], reader.decode
    monkeypatch.setattr(
        reader, "decode", lambda picture, *rest: tried.append(picture) or really(picture, *rest)
    )
    train(*options)
    assert (newest() / "skipped.csv").read_text(encoding="utf-8") == first
    assert len(set(tried)) == 62  # the good ones, and the one that is not there, which may come back
    Path("pictures/a/empty.png").write_bytes(noise(Path("new.png"), 50).read_bytes())  # mended
    train(*options)
    assert summary_of(newest())["data"]["skipped"] == 6


def test_more_bad_pictures_than_a_line_holds_are_listed_in_a_file(train: Train, tmp_path: Path) -> None:
    for seed in range(20):
        noise(tmp_path / "pictures" / "ab"[seed % 2] / f"{seed}.png", seed)
    for number in range(12):
        Path(f"pictures/a/bad {number:02}.png").touch()
    ended = train(*QUICK)
    assert ended.code == 2
    assert "12 of 32 images cannot be used: pictures/a/bad 00.png (the file is empty)" in ended.err
    assert "bad 09.png" in ended.err
    assert "bad 10.png" not in ended.err
    (listed,) = Path("outputs").rglob("skipped.csv")
    assert str(listed) in ended.err
    assert len(listed.read_text().splitlines()) == 13


@pytest.mark.parametrize(
    ("weights", "advice"), [("none", "would weigh it down"), ("balanced", "weighed down by")]
)
def test_a_class_that_is_nearly_everything_is_told(
    train: Train, tmp_path: Path, weights: str, advice: str
) -> None:
    for seed in range(40):
        noise(tmp_path / "pictures" / ("rare" if seed % 10 == 0 else "common") / f"{seed}.png", seed)
    ended = train(*QUICK, f"class_weights={weights}", "data.test_fraction=0", "data.val_fraction=0")
    assert ended.code == 0
    assert "90% of the images to train on are common" in ended.out
    assert advice in ended.out


@pytest.mark.slow
def test_balanced_classes_are_no_news(train: Train, few_pictures: Path) -> None:
    ended = train(*TINY, "data=folder", f"data.root={few_pictures}")
    assert "warning" not in ended.out
    assert "balanced" in ended.out  # the figure


NAMES = ["München", "Bilder ü's (1)", "猫", "a=b [x]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_needs_no_quotes(name: str) -> None:
    settings = compose(["data=folder", f"data.root={name}", f"cache_dir={name}-cache"])
    assert (settings.data.root, settings.cache_dir) == (name, f"{name}-cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:2])
def test_a_folder_may_have_any_name(train: Train, few_pictures: Path, tmp_path: Path, name: str) -> None:
    """Hydra's grammar knows no such letters without quotes, and a shell takes those away."""
    (tmp_path / name).symlink_to(few_pictures)
    ended = train(*TINY, "data=folder", f"data.root={name}", "epochs=1", f"cache_dir={name}-cache")
    assert (ended.code, ended.err) == (0, "")
    assert f"{name}: 3 classes" in ended.out


@pytest.mark.parametrize(("sides", "told"), [(("train", "val"), True), (("", ""), False)])
def test_a_split_of_the_datas_own_is_told(
    train: Train, tmp_path: Path, sides: tuple[str, str], told: bool
) -> None:
    for seed in range(12):
        side = sides[seed % 3 == 0]
        noise(tmp_path / "pictures" / side / "ab"[seed % 2] / f"{seed}.png", seed)
    ended = train(*QUICK, "data.val_fraction=0.5")
    assert ended.code == 0
    assert ("8 images to train, 4 to validate, 0 to test, as the data split them;" in ended.out) == told
    assert ("as the data split them" in ended.out) == told


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", pytest.param("none", marks=pytest.mark.slow)])
def test_several_labels_a_picture(train: Train, several: Path, cache: str) -> None:
    table = ("data=csv", "data.root=labels.csv", "loss=bce", "optimizer.lr=0.1", "epochs=8")
    ended = train(*TINY, *table, f"cache={cache}")
    assert (ended.code, ended.err) == (0, "")
    summary = summary_of(newest())
    assert summary["classes"] == ["blue", "green", "red"]
    for side in ("val", "test"):
        figures = summary[side]
        assert {"loss", "accuracy", "balanced_accuracy", "macro_f1", "map", "per_label"} <= set(figures)
        assert {"log_loss", "roc_auc", "at_thresholds", "intervals", "curves"} < set(figures)
        assert figures["per_label"].keys() == {"blue", "green", "red"}
        mean = np.mean([one["average_precision"] for one in figures["per_label"].values()])
        assert figures["map"] == pytest.approx(mean, rel=1e-4)
    assert summary["test"]["map"] > 0.55  # it has learnt: by chance 0.4
    assert f"mAP {summary['test']['map']:.3f}" in ended.out
    with (newest() / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["map/val"]), -float(row["loss/val"])))
    assert summary["best_epoch"] == int(best["epoch"])


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ((), "loss=cross_entropy: expected loss=bce"),
        (("loss=bce", "head=5"), "head=5: expected auto or 3, one output for each label"),
    ],
)
def test_what_several_labels_forbid(train: Train, several: Path, knobs: tuple[str, ...], told: str) -> None:
    ended = train(*TINY, "data=csv", "data.root=labels.csv", *knobs)
    assert ended.code == 2
    assert told in ended.err
