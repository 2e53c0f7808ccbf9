"""Images and labels that Python objects hold."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from finetune.data.images import ChangedImage, decode
from finetune.data.reader import Reader
from finetune.data.sources import SOURCES, Source, load_dataset
from finetune.data.sources.given import Sides, find_given, pixels_of
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
COLUMN = np.arange(12)[:, None] % 3


class Labelled(Dataset[Any]):
    """A Dataset that says how many threads are in it at once."""

    def __init__(self, labels: Any, noise: int = 0) -> None:
        self.labels, self.noise = labels, noise
        self.inside, self.most, self.calls = 0, 0, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        self.inside, self.calls = self.inside + 1, self.calls + 1
        self.most = max(self.most, self.inside)
        time.sleep(0.001)
        self.inside -= 1
        return IMAGES[index] + np.uint8(self.noise * self.calls), self.labels[index]


@pytest.mark.parametrize(
    "data",
    [(IMAGES, COLUMN), (IMAGES, torch.from_numpy(COLUMN)), Labelled(COLUMN), Labelled(torch.tensor(COLUMN))],
)
def test_a_column_of_labels_is_one_of_class_numbers(data: Any) -> None:
    found = find_given(data)
    assert found.classes == ("0", "1", "2")
    assert found.labels.tolist() == COLUMN[:, 0].tolist()


def test_labels_of_bytes_are_text() -> None:
    found = find_given((IMAGES, np.array([b"blue", "grün".encode(), b"red"] * 4)))
    assert found.classes == ("blue", "grün", "red")


def test_a_column_of_fractions_is_one_of_numbers() -> None:
    found = find_given((IMAGES, COLUMN / 2))
    assert (found.labels.shape, found.labels.dtype) == ((12, 1), np.float32)


def test_a_data_frame_for_each_side_is_one_with_a_column_split(few_pictures: Path) -> None:
    paths = sorted(few_pictures.glob("*/*.png"))
    kinds = [path.parent.name for path in paths]
    frame = pd.DataFrame({"path": paths, "label": kinds})
    found = find_given(Sides({"train": frame[::2], "test": frame[1::2]}))
    assert found.splits == ["train"] * 30 + ["test"] * 30
    assert found.images[:2] == [paths[0], paths[2]]
    assert np.array(found.classes)[found.labels].tolist() == kinds[::2] + kinds[1::2]
    with pytest.raises(RequestError, match=r"^data=Sides: expected the same columns on every side$"):
        find_given(Sides({"train": frame, "test": frame[["path"]]}))


@pytest.mark.parametrize("given", [(iter(IMAGES), COLUMN), (None, COLUMN), (IMAGES, np.array(1)), (IMAGES,)])
def test_what_has_no_length_is_told(given: Any) -> None:
    with pytest.raises(RequestError, match=r"^data=arrays: expected as many images as labels, a Dataset of"):
        find_given(given)


@pytest.mark.parametrize(
    ("labels", "told"),
    [(["0.25", "1.5", "2.0"], "the labels are decimals"), (["Cat", "cat", "dog"], "classes that differ in")],
)
@pytest.mark.parametrize("frame", [True, False])
def test_odd_names_of_classes_are_told_of_objects_too(
    few_pictures: Path, monkeypatch: pytest.MonkeyPatch, labels: list[str], told: str, frame: bool
) -> None:
    paths = sorted(few_pictures.rglob("*.png"))[:12]
    data = pd.DataFrame({"path": paths, "label": labels * 4}) if frame else (IMAGES, np.array(labels * 4))
    monkeypatch.setitem(SOURCES.objects, "python:data", Source(partial(find_given, data)))
    assert load_dataset("python:data", None, 0, 0).warnings[0].startswith(told)


def test_one_thread_at_a_time_asks_a_dataset() -> None:
    data = Labelled(COLUMN)
    images: Any = find_given(data).images
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: image.read(), images))
    assert data.most == 1
    assert all(map(np.array_equal, found, IMAGES))
    assert not Reader(images, Preprocessing()).pure  # nor another process
    assert Reader(find_given((IMAGES, COLUMN)).images, Preprocessing()).pure


def test_a_dataset_whose_images_change_is_told_where_that_belongs() -> None:
    found = find_given(Labelled(COLUMN, noise=1))
    what = r"^Labelled \[0\]: changed since .*; expected the same image each time; .* into transform=$"
    with pytest.raises(ChangedImage, match=what):
        Reader(found.images, Preprocessing(), digests=found.digests)(0)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_have_one_scale_as_files_have_it(tmp_path: Path, kind: Any) -> None:
    deep = [Image.fromarray((16 * IMAGES[i, ..., 0].astype(int) + 15).astype(kind)) for i in range(12)]
    for number, image in enumerate(deep):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        image.save(tmp_path / str(number % 2) / f"{number:02}.tiff")
    found, files = find_given((deep, np.arange(12) % 2)), load_dataset("folder", str(tmp_path), 0, 0)
    assert found.brightness == files.brightness != {}
    how = Preprocessing(8, 8, brightness=found.brightness)
    for number in range(12):
        shown = decode(found.images[number], how, found.digests[number])
        assert torch.equal(shown, decode(tmp_path / str(number % 2) / f"{number:02}.tiff", how))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_first_or_last(channels: int) -> None:
    image = IMAGES[0, :5, :, :channels]
    last = image if channels == 3 else image[..., 0]
    for given in (image, image.transpose(2, 0, 1)):
        assert np.array_equal(pixels_of(given, "", {}), last)
        assert np.array_equal(pixels_of(torch.from_numpy(given.copy()), "", {}), last)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (torch.zeros(3, 40, 48), "x: an array (3, 40, 48) of float32: expected uint8 of shape (H, W), (H, "),
        (torch.zeros(8, 8, 3).bfloat16(), "x: an array (8, 8, 3) of bfloat16: expected uint8"),
        (np.zeros((4, 8, 8), np.uint8), "x: an array (4, 8, 8) of uint8: expected uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "x: an array (1, 3, 8, 8) of uint8: expected uint8"),
        ((IMAGES[0], 1), "x: expected an image, not a tuple of several"),
        (None, "x: an array () of object: expected uint8"),
    ],
)
def test_what_is_no_image_is_told_as_it_was_given(given: Any, line: str) -> None:
    with pytest.raises(RequestError) as error:
        pixels_of(given, "x", {})
    assert str(error.value).startswith(line)
