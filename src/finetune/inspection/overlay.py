"""`finetune explain`: each picture and its heat map side by side, the answer below, and a grid of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from finetune.atomic import write_atomically
from finetune.data.images import BadImage, Reader
from finetune.errors import RequestError
from finetune.inspection.explain import heatmaps
from finetune.saved import Saved

CHUNK = 64
IN_GRID = 24
COLUMNS = 4
GAP = 4


@dataclass
class Written:
    """What `explain` wrote: one PNG a picture, and what could not be read."""

    method: str = ""
    pictures: int = 0
    bad: list[BadImage] = field(default_factory=list)


def explain(saved: Saved, pictures: Sequence[Path], out: Path, advance: Callable[[int], None]) -> Written:
    """Write a PNG for each picture and `grid.png` of the first into a folder; bad pictures are passed over.

    advance: called with the number of pictures done.

    Raises:
        RequestError: the folder cannot be made.
        RunError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--out={out}: cannot be made: {error.strerror}") from None
    written, tiles, names = Written(), list[Image.Image](), _free_names()
    sizes = saved.preprocessing
    for start in range(0, len(pictures), CHUNK):
        chunk = pictures[start : start + CHUNK]
        reader = Reader(chunk, sizes.resize_size, sizes.crop_size, sizes.interpolation)
        pixels, bad = reader.all(saved.settings.data.workers)
        broken = {one.index for one in bad}
        good = [index for index in range(len(chunk)) if index not in broken]
        written.bad += bad
        if good:
            explained = heatmaps(saved, pixels[good])
            written.method = explained.method
            captions = answers(explained.logits, saved.classes, saved.settings.loss)
            for index, heat, caption in zip(good, explained.maps, captions, strict=True):
                tile = pair(pixels[index], heat, caption)
                _save(tile, out / f"{names(chunk[index].stem)}.png")
                if len(tiles) < IN_GRID:
                    tiles.append(tile)
        written.pictures += len(good)
        advance(len(chunk))
    if tiles:
        _save(grid(tiles), out / "grid.png")
    return written


def answers(logits: Tensor, classes: Sequence[str], loss: str) -> list[str]:
    """The likeliest class of each picture with its probability."""
    likely = logits.sigmoid() if loss == "bce" else logits.softmax(1)
    names = [*classes, *(f"output {number}" for number in range(len(classes), logits.shape[1]))]
    return [f"{names[int(place)]} {value:.0%}" for value, place in zip(*likely.max(1), strict=True)]


def overlay(picture: Tensor, heat: Tensor) -> Image.Image:
    """A picture, uint8 (3, H, W), in grey, lit by a heat map (H, W) in [0, 1]: from blue, cold, to yellow."""
    grey = picture.float().mean(0, keepdim=True).permute(1, 2, 0).numpy() / 255
    colours = matplotlib.colormaps["viridis"](heat.numpy())[..., :3]
    return Image.fromarray((colours * (0.4 + 0.6 * grey) * 255).round().astype(np.uint8))


def pair(picture: Tensor, heat: Tensor, caption: str) -> Image.Image:
    """The picture, the same under its heat map, and a caption below both; no side under 160 pixels."""
    plain = Image.fromarray(picture.permute(1, 2, 0).numpy())
    side = max(plain.width, 160)
    text = max(side // 10, 16)
    tile = Image.new("RGB", (2 * side + GAP, side + 2 * text), "white")
    for place, image in enumerate((plain, overlay(picture, heat))):
        tile.paste(image.resize((side, side), Image.Resampling.BICUBIC), (place * (side + GAP), 0))
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", text)
    while len(caption) > 1 and font.getlength(caption) > tile.width:
        caption = caption[:-2] + "…"
    ImageDraw.Draw(tile).text((0, side + text // 3), caption, "black", font)
    return tile


def grid(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles of one size in rows of four, left to right."""
    columns, margin = min(len(tiles), COLUMNS), 4 * GAP
    width, height = tiles[0].width + margin, tiles[0].height + margin
    sheet = Image.new("RGB", (columns * width + margin, -(-len(tiles) // columns) * height + margin), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (margin + number % columns * width, margin + number // columns * height))
    return sheet


def _save(image: Image.Image, target: Path) -> None:
    write_atomically(target, lambda file: image.save(file, "PNG", optimize=True))


def _free_names() -> Callable[[str], str]:
    """Gives each name as it is the first time, then with a number; `grid` is taken."""
    taken = {"grid"}

    def free(name: str) -> str:
        number, chosen = 1, name
        while chosen.lower() in taken:  # some file systems do not tell A.png from a.png
            number += 1
            chosen = f"{name}-{number}"
        taken.add(chosen.lower())
        return chosen

    return free
