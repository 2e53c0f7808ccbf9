"""The data sets of torchvision."""

from __future__ import annotations

import http.client
import inspect
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from finetune.data.dataset import RawImage, Stored
from finetune.data.sources.labeled import LabeledImages, expand_home, own_splits
from finetune.errors import RequestError
from finetune.network import connect_timeout

# What torchvision looks for below data.root, for those that have a file of their own in configs/data.
FILES = {
    "CIFAR10": "cifar-10-batches-py/ or cifar-10-python.tar.gz",
    "CIFAR100": "cifar-100-python/ or cifar-100-python.tar.gz",
    "EuroSAT": "eurosat/2750/ or eurosat/EuroSAT.zip",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte and -labels-idx1-ubyte, t10k- likewise",
    "Flowers102": "flowers-102/jpg/, imagelabels.mat and setid.mat",
    "Food101": "food-101/images/ and meta/",
    "OxfordIIITPet": "oxford-iiit-pet/images/ and annotations/",
}
WORDS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}  # words for `split`


def find_in_torchvision(root: str, name: str | None = None) -> LabeledImages:
    """A data set of torchvision's by its name there, from the disk or, where the network allows, fetched.

    Raises:
        RequestError: there is no such set, it is not on the disk and cannot be fetched, or its images have
            no class each.
    """
    by_name = {one.lower(): one for one in dir(datasets) if _is_set(getattr(datasets, one))}
    if name is None or name.lower() not in by_name:
        given = "data.name" if name is None else f"data.name={name}"
        raise RequestError(
            f"{given}: expected a data set of torchvision.datasets, such as CIFAR10, Flowers102 or Food101"
        )
    name = by_name[name.lower()]
    images: list[RawImage] = []
    labels: list[int] = []
    splits: list[str] = []
    classes: Sequence[str] = ()
    for split, part in _parts(name, expand_home(root)).items():
        rows, targets = _rows(part, name)
        if not all(isinstance(target, int | np.integer) for target in targets):
            raise RequestError(f"data.name={name}: expected one class for each image; it has other labels")
        images, labels, splits = images + rows, labels + list(map(int, targets)), splits + [split] * len(rows)
        classes = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    classes = tuple(classes) or tuple(map(str, range(max(labels) + 1)))
    return LabeledImages(
        name=name,
        setting=f"data.name={name}",
        classes=tuple(map(str, classes)),
        images=images,
        labels=np.array(labels, dtype=np.int64),
        splits=own_splits(splits),
    )


def _is_set(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, datasets.VisionDataset)


def _parts(name: str, root: Path) -> dict[str, Any]:
    """The splits of the set that torchvision offers; all of it as train where there are none."""
    parameters = inspect.signature(getattr(datasets, name).__init__).parameters
    if "train" in parameters:
        return {"train": _opened(name, root, train=True), "test": _opened(name, root, train=False)}
    if "split" not in parameters:
        return {"train": _opened(name, root)}
    parts: dict[str, Any] = {}
    for split, words in WORDS.items():
        for word in words:
            try:
                parts[split] = _opened(name, root, split=word)
                break
            except ValueError as error:  # a word that this set does not know
                if isinstance(error, RequestError):
                    raise
    if "train" not in parts:
        raise RequestError(f"data.name={name}: expected a set with a part to train on")
    return parts


def _opened(name: str, root: Path, **part: Any) -> Any:
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind.__init__).parameters
    if "loader" in parameters:
        part["loader"] = Path  # images as the paths of their files, which we decode ourselves
    try:
        return kind(root, **part)
    except (RuntimeError, FileNotFoundError) as error:
        reason: object = error
    except TypeError as error:
        raise RequestError(
            f"data.name={name}: cannot be used here, it needs more than a folder ({error})"
        ) from None
    if "download" in parameters:
        try:
            with connect_timeout():
                return kind(root, **part, download=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
    files = FILES.get(name, f"the files of torchvision.datasets.{name}")
    told = str(reason).partition("\n")[0]
    raise RequestError(f"data.root={root}: expected {files} in it, which could not be fetched ({told})")


def _rows(part: Any, name: str) -> tuple[list[RawImage], list[Any]]:
    """Images and labels, as files or arrays wherever the set has them so."""
    for files in ("_images", "_image_files"):
        if hasattr(part, files) and hasattr(part, "_labels"):
            return [Path(path) for path in getattr(part, files)], list(part._labels)
    samples = getattr(part, "samples", None) or getattr(part, "_samples", None)
    if samples and isinstance(samples[0][0], str | Path):  # FER2013's are tensors
        return [Path(path) for path, _ in samples], [label for _, label in samples]
    labels = next((getattr(part, key) for key in ("targets", "labels") if hasattr(part, key)), None)
    if hasattr(part, "data") and labels is not None:
        pixels = np.asarray(part.data)
        if pixels.ndim == 4 and pixels.shape[1] == 3:
            pixels = pixels.transpose(0, 2, 3, 1)
        return [np.ascontiguousarray(one) for one in pixels], np.asarray(labels).tolist()
    images: list[RawImage] = []
    targets = []
    for index in range(len(part)):
        image, target = _item(part, name, index)
        if not isinstance(image, Path):
            image = Stored(f"{name} {index}", partial(_pixels, part, name, index), alone=True)
        images.append(image)
        targets.append(target)
    return images, targets


def _item(part: Any, name: str, index: int) -> tuple[Any, Any]:
    try:
        return part[index]
    except OSError as error:
        raise RequestError(f"data.name={name}: its image {index} cannot be read ({error})") from None


def _pixels(part: Any, name: str, index: int) -> np.ndarray:
    return np.asarray(_item(part, name, index)[0].convert("RGB"))
