"""Images that Python objects hold: arrays or a torch Dataset, also one for each side, or a DataFrame."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from finetune.data.brightness import find_scales
from finetune.data.dataset import Stored
from finetune.data.digests import stored_content
from finetune.data.pixels import Brightness, on_white
from finetune.data.sources.cells import Cells
from finetune.data.sources.labeled import LabeledImages, number_classes
from finetune.data.sources.table import Columns, images_of
from finetune.errors import RequestError, brief

ONE_AT_A_TIME: Any = Lock()  # an object may have one open file, or draw from a generator of all threads


class Sides(UserDict[str, Any]):
    """What holds the images of each side of the split."""


def find_given(thing: Any, **columns: Any) -> LabeledImages:
    """The images of an object; columns: of a DataFrame, as a table has them.

    Raises:
        RequestError: it is nothing of the kind, or an image or a label is not as it must be.
    """
    name = "arrays" if isinstance(thing, tuple) else type(thing).__name__
    setting = f"data={name}"
    frames = thing if isinstance(thing, Sides) else {"": thing}
    if all(hasattr(one, "to_csv") for one in frames.values()):
        texts = _texts(frames, setting)
        return images_of(Cells(setting, [*texts], [*texts.values()]), name, Path(), Columns(**columns))
    if wrong := columns.keys() - {"split"}:
        raise RequestError(f"data.{min(wrong)}: expected a DataFrame, or data=csv, with it")
    parts = {side: _pairs(one, setting) for side, one in thing.items()} if isinstance(thing, Sides) else {}
    every = parts or {"": _pairs(thing, setting)}
    rows = [(side, part, index) for side, part in every.items() for index in range(len(part))]
    if not rows:
        raise RequestError(f"{setting}: expected images; there are none")
    images = [
        Stored(f"{name} {side}[{i}]", partial(_read, part, i, setting), alone=type(part) is not list)
        for side, part, i in rows
    ]
    items = (part[i] for _, part, i in rows)
    seen = [(stored_content(pixels_of(one, setting, None)), np.asarray(label)) for one, label, *_ in items]
    names, numbers = _labels([label for _, label in seen], _classes_of(every, setting), setting)
    splits = [side for side, _, _ in rows] if parts else None
    return LabeledImages(
        name=name,
        setting=setting,
        classes=names,
        images=images,
        labels=numbers,
        splits=splits,
        declared=tuple(parts),
        digests=[content.sha256 for content, _ in seen],
        brightness=find_scales(content.extent for content, _ in seen),
    )


def _labels(labels: Sequence[np.ndarray], told: tuple[str, ...], setting: str) -> tuple[Any, np.ndarray]:
    """The classes, which the data may tell, and class numbers, or a vector for each image."""
    if all(one.shape == (1,) and (one.dtype.kind != "f" or one.item().is_integer()) for one in labels):
        labels = [one.reshape(()) for one in labels]
    several = labels[0].ndim
    words = several and any(one.dtype.kind not in "biuf" for one in labels)
    if len({one.shape for one in labels}) > 1 or several > 1 or words:
        raise RequestError(f"{setting}: expected a label an image, or a vector of 0 and 1")
    none = ("None", "nan", "<NA>", "NaT")
    missing = (i for i, one in enumerate(labels) if (np.isnan(one).any() if several else str(one) in none))
    if (first := next(missing, None)) is not None:
        raise RequestError(f"{setting}: expected a label for every image; image {first} has none")
    if several:
        return told or tuple(f"label {i}" for i in range(len(labels[0]))), np.stack(labels).astype(np.float32)
    if told and all(one.dtype.kind in "iu" for one in labels):
        numbers = np.array(labels, np.int64)
        if len(outside := np.flatnonzero((numbers < 0) | (numbers >= len(told)))):
            wanted = f"expected labels below {len(told)}, the number of classes"
            raise RequestError(f"{setting}: {wanted}, not {numbers[outside[0]]}")
        return told, numbers
    texts = (
        one.item().decode(errors="backslashreplace") if one.dtype.kind == "S" else str(one) for one in labels
    )
    return number_classes([*texts])


def _texts(frames: Any, setting: str) -> dict[str, list[str]]:
    """The cells of a DataFrame by column; of one for each side those of all, with a column split."""
    texts: dict[str, list[str]] = {}
    for side, frame in frames.items():
        columns = {str(key): cells for key, cells in frame.items()}
        columns |= {"split": [side] * len(frame)} if side else {}
        if texts and texts.keys() != columns.keys():
            raise RequestError(f"{setting}: expected the same columns on every side")
        for key, cells in columns.items():
            texts.setdefault(key, []).extend("" if one is None else str(one) for one in cells)
    return texts


def _classes_of(every: dict[str, Any], setting: str) -> tuple[str, ...]:
    """The names that numbers stand for, where they are told, on all sides the same ones."""
    told = {tuple(map(str, getattr(part, "classes", ()))) for part in every.values()}
    if len(told) > 1:
        several = " and ".join(brief(one, 3) or "none" for one in sorted(told))
        raise RequestError(f"{setting}: expected the same classes on every side, not {several}")
    return told.pop()


def _pairs(thing: Any, setting: str) -> Any:
    """What gives (image, label) by its index, and has a length."""
    alike = False
    with suppress(TypeError):  # of what has no length
        alike = isinstance(thing, tuple) and len(thing) == 2 and len(thing[0]) == len(thing[1])
    if alike:
        return list(zip(*thing, strict=True))
    indexed = hasattr(thing, "__len__") and hasattr(thing, "__getitem__") and not hasattr(thing, "to_csv")
    if isinstance(thing, tuple) or not indexed or not len(thing) or not isinstance(thing[0], tuple | list):
        what = "as many images as labels, a Dataset of (image, label) with a length"
        raise RequestError(f"{setting}: expected {what}, or a DataFrame, its sides in a column split")
    return thing


def _read(part: Any, index: int, setting: str) -> np.ndarray:
    with nullcontext() if type(part) is list else ONE_AT_A_TIME:
        return pixels_of(part[index][0], f"{setting}: image {index}", None)


def pixels_of(given: Any, where: str, brightness: Brightness | None) -> np.ndarray:
    """An image as an array (H, W) or (H, W, 3); else RequestError.

    given: a PIL image, or uint8 of these shapes, (H, W, 1) or (C, H, W), as a tensor is where both fit.
    brightness: None: grey of more than 8 bits is left as it is, (H, W), until the scale of all is known.
    """
    if isinstance(given, Image.Image):
        try:
            upright = ImageOps.exif_transpose(given)
            deep = upright.mode.startswith(("I", "F")) and "transparency" not in upright.info
            if brightness is None and deep:
                return np.asarray(upright)
            return np.asarray(on_white(upright, brightness or {}))
        except (OSError, ValueError) as error:  # it is decoded only now
            name = getattr(given, "filename", "") or where
            raise RequestError(f"{name}: expected an image; {error}") from None
    places = (0, 2) if isinstance(given, Tensor) else (2, 0)  # of the channels
    try:
        given = given if isinstance(given, Tensor) else np.asarray(given)
    except ValueError:  # a pair of an image and its label
        raise RequestError(f"{where}: expected an image, not a {type(given).__name__} of several") from None
    shape, kind = tuple(given.shape), str(given.dtype).removeprefix("torch.")
    channels = [place for place in places if given.ndim == 3 and shape[place] in (1, 3)]
    if kind != "uint8" or not (given.ndim == 2 or channels) or 0 in shape:
        told = f"an array {shape} of {kind}: expected uint8 of shape (H, W), (H, W, 3) or (3, H, W)"
        raise RequestError(f"{where}: {told}")
    pixels = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    pixels = np.moveaxis(pixels, channels[0], 2) if channels else pixels
    return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
