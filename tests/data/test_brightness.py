"""Images of more than 8 bits share one scale of brightness, which strays and single images do not move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageFile

from finetune.data import brightness
from finetune.data.brightness import find_scales, scale
from finetune.data.dataset import Dataset
from finetune.data.images import decode
from finetune.data.sources import load_dataset
from finetune.model.preprocessing import Preprocessing
from finetune.prepared import keep_scale
from finetune.runs.resume import ResumeState
from support.painted import photograph

GREY = np.asarray(photograph(32, 32).convert("L"), dtype=np.float64) / 255
KINDS = {
    "sixteen": lambda grey: np.round(grey * 65535).astype(np.uint16),
    "twelve": lambda grey: np.round(grey * 4095).astype(np.uint16),
    "ten": lambda grey: np.round(grey * 1023).astype(np.uint16),
    "above": lambda grey: np.round(grey * 4095).astype(np.uint16) + 2**15,
    "signed": lambda grey: np.round(grey * 4095).astype(np.int32) - 1024,
    "int32": lambda grey: np.round(grey * 255).astype(np.int32),
    "float": lambda grey: grey.astype(np.float32),
    "eight": lambda grey: np.round(grey * 255).astype(np.uint8),
}


def stored(folder: Path, *images: np.ndarray, memo: Path | None = None) -> Dataset:
    """A data set of these images and their mirrors, as TIFF."""
    for name in ("plain", "turned"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / "plain" / f"{number:03}.tiff")
        Image.fromarray(pixels[:, ::-1].copy()).save(folder / "turned" / f"{number:03}.tiff")
    return load_dataset("folder", str(folder), 0, 0, memo)


def shades(dataset: Dataset, index: int) -> np.ndarray:
    how = Preprocessing(32, 32, brightness=dataset.brightness)
    return decode(dataset.images[index], how)[0].numpy().astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_however_many_bits_there_are_an_image_looks_the_same(tmp_path: Path, kind: str) -> None:
    dataset = stored(tmp_path, KINDS[kind](GREY), KINDS[kind](GREY / 2))
    assert np.abs(shades(dataset, 0) - GREY * 255).max() <= 1
    assert np.abs(shades(dataset, 1) - GREY * 255 / 2).max() <= 1


@pytest.mark.parametrize("kind", ["float", "int32", "eight"])
def test_dim_images_stay_dim_beside_bright_ones(tmp_path: Path, kind: str) -> None:
    dataset = stored(tmp_path, *(KINDS[kind](np.full((32, 32), shade)) for shade in (0.2, 0.8)))
    assert (shades(dataset, 0) == 51).all()
    assert (shades(dataset, 1) == 204).all()


@pytest.mark.parametrize("hot", [1e6, -1e6, np.inf, -np.inf, np.nan])
def test_a_hot_pixel_is_the_only_one_to_suffer(tmp_path: Path, hot: float) -> None:
    spoilt = GREY.astype(np.float32)
    spoilt[5, 7] = hot
    dataset = stored(tmp_path, GREY.astype(np.float32), spoilt)
    apart = np.abs(shades(dataset, 1) - GREY * 255)
    apart[5, 7] = 0
    assert apart.max() <= 1
    assert dataset.brightness == {"F": (0.0, 1.0)}


def test_one_odd_image_among_many_does_not_darken_the_rest() -> None:
    many = [f'["I", {low}, 4000]' for low in range(200)]
    assert find_scales([*many, '["I", 65535, 65535]', '["I", -500, 3000]', ""]) == {"I": (0.0, 4095.0)}


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 65535, True, (0, 65535)),
        (3, 300, True, (0, 511)),
        (16384, 20479, True, (16384, 20479)),
        (130, 200, True, (0, 255)),
        (-1024, 3071, True, (-1024, 3071)),
        (0, 1, True, (0, 1)),
        (0.3, 0.9, False, (0, 1)),
        (-1, 1, False, (-1, 1)),
        (0, 255, False, (0, 255)),
        (100, 100.5, False, (100, 100.5)),
    ],
)
def test_the_scale_is_a_power_of_two(
    low: float, high: float, whole: bool, expected: tuple[float, float]
) -> None:
    assert scale(low, high, whole) == expected


@pytest.mark.parametrize("value", [0, 5, 65535])
def test_images_of_a_single_shade_have_a_scale(value: int) -> None:
    for kind in "IF":
        ((black, white),) = find_scales([f'["{kind}", {value}, {value}]']).values()
        assert black <= value <= white
        assert black < white


def test_kinds_of_pixels_have_scales_of_their_own_and_broken_files_none(tmp_path: Path) -> None:
    dataset = stored(tmp_path, KINDS["float"](GREY), KINDS["twelve"](GREY), KINDS["eight"](GREY))
    assert dataset.brightness == {"F": (0.0, 1.0), "I": (0.0, 4095.0)}
    for path in tmp_path.glob("*/001.tiff"):
        path.write_bytes(path.read_bytes()[:-900])
    assert load_dataset("folder", str(tmp_path), 0, 0).brightness == {"F": (0.0, 1.0)}


def test_what_was_found_once_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = tmp_path / "memo.sqlite"
    monkeypatch.setattr("finetune.data.digests.SETTLED_NS", -(10**12))
    first = stored(tmp_path / "images", KINDS["ten"](GREY), memo=memo)
    monkeypatch.setattr(brightness, "extent", None)
    monkeypatch.setattr("finetune.data.digests.extent", None)
    again = load_dataset("folder", str(tmp_path / "images"), 0, 0, memo)
    assert again.brightness == first.brightness == {"I": (0.0, 1023.0)}


def test_what_memory_did_not_suffice_for_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = tmp_path / "memo.sqlite"
    monkeypatch.setattr("finetune.data.digests.SETTLED_NS", -(10**12))
    for short in (MemoryError(), ImageFile._get_oserror(-9, encoder=False)):
        with monkeypatch.context() as patched:
            patched.setattr(brightness, "_ends", Mock(side_effect=short))
            assert stored(tmp_path / "images", KINDS["ten"](GREY), memo=memo).brightness == {}
    again = load_dataset("folder", str(tmp_path / "images"), 0, 0, memo)
    assert again.brightness == {"I": (0.0, 1023.0)}


def test_transparent_grey_of_sixteen_bits_lies_on_white(tmp_path: Path) -> None:
    grey = np.full((8, 8), 20000, np.uint16)
    grey[0, 0] = 10000
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=20000)
    pixels = decode(tmp_path / "a.png", Preprocessing(8, 8)).numpy()
    assert pixels[:, 0, 0].tolist() == [39, 39, 39]
    assert (pixels.reshape(3, -1)[:, 1:] == 255).all()


def test_runs_without_a_scale_keep_the_old_meaning(tmp_path: Path) -> None:
    twelve, how = KINDS["twelve"](GREY), Preprocessing(32, 32)
    Image.fromarray(twelve).save(tmp_path / "a.tiff")
    old = decode(tmp_path / "a.tiff", how)[0].numpy()
    assert (old == np.round(twelve / 65535 * 255)).all()
    assert Preprocessing.from_metadata(how.metadata()) == how
    assert not {"brightness", "repair"} & how.metadata().keys()
    new = Preprocessing(32, 32, brightness={"I": (0.0, 4095.0)}, repair=True)
    assert Preprocessing.from_metadata(new.metadata()) == new
    dataset = stored(tmp_path / "images", KINDS["ten"](GREY))
    for before in (how, new):
        state = ResumeState(tmp_path, 1, 1, {"about": before.metadata()})
        about = replace(how, brightness=keep_scale(dataset, state).brightness).metadata()
        assert about.get("brightness") == before.metadata().get("brightness")
    assert keep_scale(dataset, None) == dataset
