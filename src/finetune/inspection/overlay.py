"""`finetune explain`: each picture and its heat map side by side, the answer below, and a grid of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from finetune.atomic import write_atomically
from finetune.data.dataset import Picture
from finetune.data.images import BadImage, Reader
from finetune.errors import RequestError, RunError, brief
from finetune.inference.calibration import temperature_of
from finetune.inference.metrics import probabilities
from finetune.inference.paths import find
from finetune.inspection.explain import heatmaps
from finetune.report.say import Screen
from finetune.report.terminal import progress, say
from finetune.saved import Saved, open_run

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
            captions = answers(saved, explained.logits)
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


def maps(saved: Saved, pictures: Sequence[Picture], answers: Sequence[str]) -> list[Image.Image | None]:
    """Each picture lit by what in it speaks for an answer; None where it cannot be read.

    answers: names of classes.
    """
    sizes = saved.preprocessing
    read = Reader(pictures, sizes.resize_size, sizes.crop_size, sizes.interpolation)
    pixels = {i: one for i in range(len(pictures)) if isinstance(one := read(i), Tensor)}
    lit: list[Image.Image | None] = [None] * len(pictures)
    if pixels:
        chosen = torch.tensor([saved.names.index(answers[i]) for i in pixels])
        explained = heatmaps(saved, torch.stack([*pixels.values()]), chosen)
        for (i, one), heat in zip(pixels.items(), explained.maps, strict=True):
            lit[i] = overlay(one, heat)
    return lit


def answers(saved: Saved, logits: Tensor) -> list[str]:
    """The likeliest class of each picture with its probability, calibrated as `finetune predict` gives it."""
    likely = probabilities(logits, saved.settings.loss, temperature_of(saved.summary))
    places = logits.argmax(1)
    return [
        f"{saved.names[place]} {row[place]:.0%}" for row, place in zip(likely, places.tolist(), strict=True)
    ]


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
    caption = " ".join(caption.split())  # one line
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


def explain_paths(run: str, paths: list[str], out: Path | None) -> None:
    """Explain a run's answers to the pictures that `paths` name, in a folder; in the run's own by default.

    Raises:
        RunError: a picture cannot be read; the others are explained.
    """

    console = Screen()
    pictures, saved = list(find(paths, sys.stdin)), open_run(run)
    if not pictures:
        raise RequestError("-: expected names of pictures on stdin; there are none")
    folder = out or saved.folder / "explain"
    with progress(console, "explain", len(pictures)) as advance:
        written = explain(saved, pictures, folder, advance)
    if written.pictures:
        say(console, "explain", f"{written.pictures:,} pictures, {written.method}")
        say(console, "folder", f"{folder}, the first {min(written.pictures, IN_GRID)} in grid.png")
    if written.bad:
        shown = brief([f"{one.path} ({one.reason})" for one in written.bad], 10)
        raise RunError(f"{len(written.bad):,} of {len(pictures):,} pictures cannot be read: {shown}")
