"""torchvision's data sets: Fashion-MNIST for real where Debian has it, others small, in their shape."""

from __future__ import annotations

import gzip
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.images import decode
from finetune.data.sources import load_dataset
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def fill(folder: Path, names: dict[str, int]) -> None:
    """So many small images for each name."""
    folder.mkdir(parents=True)
    for name, count in names.items():
        for number in range(count):
            pixels = np.random.default_rng([number, len(name)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number}.jpg")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in DEBIAN.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    found = load_dataset("torchvision", str(tmp_path), 0.15, 0.15, name="fashionmnist")
    assert found.name == "FashionMNIST"
    assert found.classes[:2] == ("T-shirt/top", "Trouser")
    assert len(found.split["test"]) == 10_000
    assert sum(found.counts().values()) == 70_000
    assert 8_400 < len(found.split["val"]) < 9_600  # out of train
    assert np.bincount(found.labels).tolist() == [7000] * 10
    assert decode(found.images[0], Preprocessing(32, 32)).shape == (3, 32, 32)


def test_cifar_in_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *arguments: True)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, _ in (*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list):
        content = {
            "data": generator.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": list(range(10)) * 2,
        }
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names": list("abcdefghij")}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    found = load_dataset("torchvision", str(tmp_path), 0.2, 0.15, name="CIFAR10")
    assert found.classes == tuple("abcdefghij")
    assert sum(found.counts().values()) == 120
    assert len(found.split["test"]) == 20
    assert np.asarray(found.images[0]).shape == (32, 32, 3)


def test_samples_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.fer2013, "check_integrity", lambda *arguments, **options: True)
    usages, rows = ("Training", "Training", "Training", "PublicTest"), ["emotion,pixels,Usage"]
    for number in range(40):
        shades = " ".join(str((number + place) % 256) for place in range(48 * 48))
        rows.append(f"{number % 2},{shades},{usages[number % 4]}")
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013" / "fer2013.csv").write_text("\n".join(rows))
    found = load_dataset("torchvision", str(tmp_path), 0.2, 0.15, name="FER2013")
    assert len(found.split["test"]) == 10
    assert found.labels[:4].tolist() == [0, 1, 0, 0]
    assert decode(found.images[0], Preprocessing(48, 48))[:, 0, :3].tolist() == [[0, 1, 2]] * 3


def test_pets_as_files(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    fill(root / "images", {"Abyssinian": 6, "beagle": 6})
    (root / "annotations").mkdir()
    for side, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        lines = [
            f"{name}_{number} {label} {species} 1"
            for label, (name, species) in enumerate((("Abyssinian", 1), ("beagle", 2)), 1)
            for number in numbers
        ]
        (root / "annotations" / f"{side}.txt").write_text("\n".join(lines))
    found = load_dataset("torchvision", str(tmp_path), 0.0, 0.15, name="OxfordIIITPet")
    assert found.classes == ("Abyssinian", "Beagle")
    assert found.counts() == {"train": 8, "val": 0, "test": 4}
    assert found.images[0] == root / "images" / "Abyssinian_0.jpg"


def test_food_as_files_that_we_decode_ourselves(tmp_path: Path) -> None:
    root = tmp_path / "food-101"
    for name in ("apple_pie", "sushi"):
        fill(root / "images" / name, {name: 6})
    (root / "meta").mkdir()
    for side, numbers in (("train", range(4)), ("test", range(4, 6))):
        listed = {name: [f"{name}/{name}_{n}" for n in numbers] for name in ("apple_pie", "sushi")}
        (root / "meta" / f"{side}.json").write_text(str(listed).replace("'", '"'))
    found = load_dataset("torchvision", str(tmp_path), 0.0, 0.15, name="Food101")
    assert found.classes == ("apple_pie", "sushi")
    assert found.counts() == {"train": 8, "val": 0, "test": 4}
    assert all(isinstance(image, Path) for image in found.images)


def test_a_set_without_sides_is_split_by_content(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        fill(tmp_path / "eurosat" / "2750" / name, {name: 30})
    found = load_dataset("torchvision", str(tmp_path), 0.2, 0.2, name="EuroSAT")
    assert found.classes == ("Forest", "River")
    assert all(found.counts().values())


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("CIFAR10", "cifar-10-python.tar.gz"),
        ("Flowers102", "flowers-102/jpg/"),
        ("STL10", "torchvision.datasets.STL10"),
    ],
)
def test_what_is_missing_is_named_with_its_place(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(RequestError) as raised:
        load_dataset("torchvision", str(tmp_path), 0.15, 0.15, name=name)
    told = str(raised.value)
    assert told.startswith(f"data.root={tmp_path}: expected ")
    assert files in told
    assert told.endswith("which could not be fetched (no network here)")


@pytest.mark.parametrize("name", [None, "Imagenette2", "ImageFolders"])
def test_a_set_that_torchvision_does_not_have(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(RequestError, match=r"expected a data set of torchvision.datasets, such as CIFAR10"):
        load_dataset("torchvision", str(tmp_path), 0.15, 0.15, name=name)


def test_without_a_root_it_says_what_that_is() -> None:
    with pytest.raises(
        RequestError, match=r"^data.root: expected the folder that torchvision keeps the set in"
    ):
        load_dataset("torchvision", None, 0.15, 0.15, name="CIFAR10")
