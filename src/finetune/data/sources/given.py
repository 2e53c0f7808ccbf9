"""Images that Python objects hold: arrays or a torch Dataset, also one for each side, or a DataFrame."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from finetune.data.dataset import Stored
from finetune.data.digests import content_digest
from finetune.data.pixels import Brightness, on_white
from finetune.data.sources.cells import Cells
from finetune.data.sources.labeled import LabeledImages, number_classes
from finetune.data.sources.table import Columns, images_of
from finetune.errors import RequestError, brief


class Sides(UserDict[str, Any]):
    """What holds the images of each side of the split."""


def find_given(thing: Any, **columns: Any) -> LabeledImages:
    """The images of an object; columns: of a DataFrame, as a table has them.

    Raises:
        RequestError: it is nothing of the kind, or an image or a label is not as it must be.
    """
    name = "arrays" if isinstance(thing, tuple) else type(thing).__name__
    setting = f"data={name}"
    if hasattr(thing, "to_csv"):
        texts = {str(key): ["" if one is None else str(one) for one in cells] for key, cells in thing.items()}
        return images_of(Cells(setting, [*texts], [*texts.values()]), name, Path(), Columns(**columns))
    if wrong := columns.keys() - {"split"}:
        raise RequestError(f"data.{min(wrong)}: expected a DataFrame, or data=csv, with it")
    parts = {side: _pairs(one, setting) for side, one in thing.items()} if isinstance(thing, Sides) else {}
    every = parts or {"": _pairs(thing, setting)}
    rows = [(side, part, index) for side, part in every.items() for index in range(len(part))]
    images = [Stored(f"{name} {side}[{i}]", partial(_read, part, i, setting)) for side, part, i in rows]
    items = (part[i] for _, part, i in rows)
    seen = [(content_digest(pixels_of(one, setting, {})), np.asarray(label)) for one, label, *_ in items]
    digests, labels = [digest for digest, _ in seen], [label for _, label in seen]
    if len({one.shape for one in labels}) > 1 or labels[0].ndim > 1:
        raise RequestError(f"{setting}: expected a label an image, or a vector of 0 and 1")
    told = _classes_of(every, setting)
    if labels[0].ndim:
        names = told or tuple(f"label {i}" for i in range(len(labels[0])))
        numbers: np.ndarray = np.stack(labels).astype(np.float32)
    elif told and all(one.dtype.kind in "iu" for one in labels):
        names, numbers = told, np.array(labels, np.int64)
        if len(outside := np.flatnonzero((numbers < 0) | (numbers >= len(told)))):
            wanted = f"expected labels below {len(told)}, the number of classes"
            raise RequestError(f"{setting}: {wanted}, not {numbers[outside[0]]}")
    else:
        if len(missing := [i for i, one in enumerate(labels) if str(one) in ("None", "nan", "<NA>", "NaT")]):
            raise RequestError(f"{setting}: expected a label for every image; image {missing[0]} has none")
        names, numbers = number_classes([str(one) for one in labels])
    splits = [side for side, _, _ in rows] if parts else None
    return LabeledImages(
        name=name,
        setting=setting,
        classes=names,
        images=images,
        labels=numbers,
        splits=splits,
        declared=tuple(parts),
        digests=digests,
    )


def _classes_of(every: dict[str, Any], setting: str) -> tuple[str, ...]:
    """The names that numbers stand for, where they are told, on all sides the same ones."""
    told = {tuple(map(str, getattr(part, "classes", ()))) for part in every.values()}
    if len(told) > 1:
        several = " and ".join(brief(one, 3) or "none" for one in sorted(told))
        raise RequestError(f"{setting}: expected the same classes on every side, not {several}")
    return told.pop()


def _pairs(thing: Any, setting: str) -> Any:
    """What gives (image, label) by its index, and has a length."""
    if isinstance(thing, tuple) and len(thing) == 2 and len(thing[0]) == len(thing[1]):
        return list(zip(*thing, strict=True))
    indexed = hasattr(thing, "__len__") and hasattr(thing, "__getitem__") and not hasattr(thing, "to_csv")
    if isinstance(thing, tuple) or not indexed or not len(thing) or not isinstance(thing[0], tuple | list):
        what = "as many images as labels, a Dataset of (image, label) with a length"
        raise RequestError(f"{setting}: expected {what}, or a DataFrame, its sides in a column split")
    return thing


def _read(part: Any, index: int, setting: str) -> np.ndarray:
    return pixels_of(part[index][0], f"{setting}: image {index}", {})


def pixels_of(given: Any, where: str, brightness: Brightness) -> np.ndarray:
    """A PIL image, uint8 array (H, W) or (H, W, 3), or tensor (C, H, W) as an array; else RequestError."""
    if isinstance(given, Image.Image):
        try:
            return np.asarray(on_white(ImageOps.exif_transpose(given), brightness))
        except (OSError, ValueError) as error:  # it is decoded only now
            name = getattr(given, "filename", "") or where
            raise RequestError(f"{name}: expected an image; {error}") from None
    given = given.cpu().movedim(-3, -1).numpy() if isinstance(given, Tensor) and given.ndim > 2 else given
    given = np.asarray(given)
    given = given[..., 0] if given.shape[2:] == (1,) else given
    fits = given.ndim in (2, 3) and given.shape[2:] in ((), (3,)) and given.size
    if given.dtype != np.uint8 or not fits:
        told = f"an array {given.shape} of {given.dtype}: expected uint8 of shape (H, W) or (H, W, 3)"
        raise RequestError(f"{where}: {told}")
    return given
