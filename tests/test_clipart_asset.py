"""The embedded data set `clipart`: the manifest matches the folder, and the script rebuilds both."""

import csv
import hashlib
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "src/finetune/assets/clipart"
SCRIPT = ROOT / "scripts/make_clipart.py"
PACKAGE = Path("/usr/share/openclipart/png")
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the manifest in a folder."""
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """The rows of the shipped manifest."""
    return read_manifest(ASSET)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names that the script defines, without running it."""
    return runpy.run_path(str(SCRIPT), run_name="make_clipart")


def test_manifest_is_the_folder(rows: list[dict[str, str]]) -> None:
    assert list(rows[0]) == ["file", "class", "split", "family", "source", "title", "author", "sha256"]
    listed = [row["file"] for row in rows]
    assert listed == sorted(listed)
    assert set(listed) == {path.relative_to(ASSET).as_posix() for path in ASSET.rglob("*.png")}
    for row in rows:
        assert re.fullmatch(rf"{row['class']}/[a-z0-9_]+\.png", row["file"])
        assert hashlib.sha256((ASSET / row["file"]).read_bytes()).hexdigest() == row["sha256"], row["file"]
    assert len({row["source"] for row in rows}) == len(rows)
    assert len({row["sha256"] for row in rows}) == len(rows)


def test_pictures_are_alike_in_form(rows: list[dict[str, str]]) -> None:
    for row in rows:
        with Image.open(ASSET / row["file"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "P", (144, 144)), row["file"]
            pixels = np.asarray(image.convert("RGB"))
        # The margin is white and the content is not blank.
        assert (pixels[[0, -1]] >= 250).all(), row["file"]
        assert (pixels[:, [0, -1]] >= 250).all(), row["file"]
        assert pixels.std() > 5, row["file"]


def test_size_and_papers() -> None:
    assert sum(path.stat().st_size for path in ASSET.rglob("*") if path.is_file()) <= 6_000_000
    assert "Public Domain Dedication" in (ASSET / "LICENSE").read_text(encoding="utf-8")
    assert (ASSET / "README.md").is_file()


def test_classes_and_splits(rows: list[dict[str, str]]) -> None:
    classes = Counter(row["class"] for row in rows)
    assert len(classes) == 10
    assert all(70 <= count <= 100 for count in classes.values()), classes
    counts = Counter((row["class"], row["split"]) for row in rows)
    for name, total in classes.items():
        for split, share in SHARES.items():
            assert abs(counts[name, split] - share * total) <= 1, (name, split)


def test_card_gives_the_counts(rows: list[dict[str, str]]) -> None:
    counts = Counter((row["class"], row["split"]) for row in rows)
    card = (ASSET / "README.md").read_text(encoding="utf-8")
    for name in {row["class"] for row in rows}:
        numbers = [counts[name, split] for split in SHARES]
        line = " | ".join(map(str, [name, *numbers, sum(numbers)]))
        assert f"| {line} |" in card


@pytest.mark.slow
def test_no_near_duplicates_across_splits(rows: list[dict[str, str]], script: dict[str, Any]) -> None:
    prints = []
    for row in rows:
        with Image.open(ASSET / row["file"]) as image:
            prints.append(script["fingerprint"](image))
    splits = np.array([row["split"] for row in rows])
    across = script["near_duplicates"](prints) & (splits[:, None] != splits[None, :])
    assert not across.any(), [(rows[one]["file"], rows[other]["file"]) for one, other in np.argwhere(across)]
    series: dict[str, str] = {}
    for row in rows:
        assert series.setdefault(script["series"](row["source"]), row["family"]) == row["family"], row["file"]
    family = np.array([row["family"] for row in rows])
    assert not (script["near_duplicates"](prints) & (family[:, None] != family[None, :])).any()
    assert len({(row["family"], row["split"]) for row in rows}) == len(set(family))


def test_near_duplicates_see_through_colour_and_mirrors(script: dict[str, Any]) -> None:
    grid = np.add.outer(np.arange(144) - 60.0, 1j * (np.arange(144) - 80.0))
    shape = (np.abs(grid) < 50) & (np.abs(grid - 25) > 20)
    colours = [220, 0, 0], [0, 0, 90]
    red, blue = (np.where(shape[..., None], colour, 255).astype(np.uint8) for colour in colours)
    other = np.where((np.abs(grid.real) < 12)[..., None], [220, 0, 0], 255).astype(np.uint8)
    prints = [script["fingerprint"](Image.fromarray(each)) for each in (red, blue, red[:, ::-1], other)]
    near = script["near_duplicates"](prints)
    assert near[:3, :3].all()
    assert not near[3, :3].any()


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGE.is_dir(), reason="Debian's package openclipart-png is not installed")
def test_script_rebuilds_the_set(rows: list[dict[str, str]], script: dict[str, Any], tmp_path: Path) -> None:
    script["build"](PACKAGE, tmp_path)
    pinned = re.search(r'"pillow==([^"]+)"', SCRIPT.read_text(encoding="utf-8"))
    assert pinned
    if PIL.__version__ == pinned[1]:
        assert (tmp_path / "manifest.csv").read_bytes() == (ASSET / "manifest.csv").read_bytes()
        for row in rows:
            assert (tmp_path / row["file"]).read_bytes() == (ASSET / row["file"]).read_bytes(), row["file"]
        return
    # Another Pillow compresses differently and, before 13, rounds a little differently when it scales.
    rebuilt = read_manifest(tmp_path)
    assert [row | {"sha256": ""} for row in rebuilt] == [row | {"sha256": ""} for row in rows]
    for row in rows:
        with Image.open(tmp_path / row["file"]) as new, Image.open(ASSET / row["file"]) as old:
            pixels = [np.asarray(image.convert("RGB"), dtype=np.int16) for image in (new, old)]
        assert np.abs(pixels[0] - pixels[1]).mean() < 1, row["file"]
