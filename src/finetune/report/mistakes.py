"""Pictures for a page that needs nothing beside itself: wrong answers, and what in each spoke for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from finetune.data.dataset import Picture
from finetune.data.images import BrokenPicture, decode
from finetune.model.preprocessing import Preprocessing
from finetune.report import predictions
from finetune.report.predictions import Prediction

THUMBNAIL = 160

Maps = Callable[[Sequence[Picture], Sequence[str]], Sequence[Image.Image | None]]


def mistakes(
    shown: Sequence[Prediction], pictures: Sequence[Picture], maps: Maps | None
) -> list[tuple[Prediction, str | None, str | None]]:
    """Each answer with its picture and, where there are maps, what spoke for it; both as data URIs."""
    found = named([one.picture for one in shown], pictures)
    lit = maps(found, [one.predicted for one in shown]) if maps else [None] * len(found)
    heat = [None if one is None else _as_uri(one.resize((THUMBNAIL, THUMBNAIL))) for one in lit]
    return [*zip(shown, map(thumbnail, found), heat, strict=True)]


def named(names: Sequence[str], pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures by their names in predictions.csv.

    pictures: the data set's, among which those are found that are no files.
    """
    found = {
        name: picture
        for index, picture in enumerate(pictures)
        if not isinstance(picture, Path) and (name := predictions.name_of(picture, index)) in names
    }
    return [found.get(name, Path(name)) for name in names]


def thumbnail(picture: Picture) -> str | None:
    """Cropped as the model sees it; None where it cannot be read."""
    try:
        pixels = decode(picture, Preprocessing(THUMBNAIL, THUMBNAIL))
    except BrokenPicture:
        return None
    return _as_uri(Image.fromarray(pixels.permute(1, 2, 0).numpy()))


def _as_uri(image: Image.Image) -> str:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stored.getvalue()).decode()}"
