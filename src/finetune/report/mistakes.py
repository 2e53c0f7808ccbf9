"""Images for a page that needs nothing beside itself: wrong answers, and what in each spoke for it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from finetune.data.dataset import RawImage
from finetune.data.images import BrokenImage, decode
from finetune.errors import RequestError
from finetune.model.preprocessing import Preprocessing
from finetune.report.predictions import Prediction, name_of

THUMBNAIL = 160

Maps = Callable[[Sequence[RawImage], Sequence[str]], Sequence[Image.Image | None]]


def mistakes(
    wrong: Sequence[Prediction],
    images: Sequence[RawImage],
    maps: Maps | None,
    how: Preprocessing,
    folder: Path,
) -> dict[str, Any]:
    """Each wrong answer with its image, what spoke for it where there are maps, and a link to its file.

    `unlit` is why there are no maps, where they cannot be had.
    folder: of the page, from which links lead: whoever gets it alone learns nothing of where it was made.
    """
    found = images_named([one.picture for one in wrong], images)
    overlays: Sequence[Image.Image | None] = [None] * len(found)
    why = ""
    try:
        overlays = maps(found, [one.predicted for one in wrong]) if maps else overlays
    except RequestError as error:
        why = str(error)
    heat = [_as_uri(one.resize((THUMBNAIL, THUMBNAIL))) if one else None for one in overlays]
    here = [isinstance(one, Path) and one.is_file() for one in found]
    links = [
        quote(os.fsencode(os.path.relpath(str(one), folder))) if there else None
        for one, there in zip(found, here, strict=True)
    ]
    rows = zip(wrong, [thumbnail(one, how) for one in found], heat, links, strict=True)
    return {"mistakes": [*rows], "unlit": why}


def images_named(names: Sequence[str], images: Sequence[RawImage]) -> list[RawImage]:
    """Images by their names in predictions.csv, those that are no files among the data set's."""
    found = {name_of(one, at): one for at, one in enumerate(images) if not isinstance(one, Path)}
    return [found.get(name, Path(name)) for name in names]


def thumbnail(image: RawImage, how: Preprocessing) -> str | None:
    """Cropped as the model sees it; None where it cannot be read."""
    try:
        pixels = decode(image, replace(how, crop_size=THUMBNAIL, resize_size=THUMBNAIL))
    except BrokenImage:
        return None
    return _as_uri(Image.fromarray(pixels.permute(1, 2, 0).numpy()))


def _as_uri(image: Image.Image) -> str:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}"
