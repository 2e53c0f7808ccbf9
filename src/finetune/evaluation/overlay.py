"""`finetune explain`: each image and its heat map side by side, the answer below, and a grid of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from finetune.atomic import make_out, write_atomically
from finetune.choices.losses import LOSSES
from finetune.data.dataset import RawImage
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.errors import RequestError, RunError, brief, counted, shown
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.explain import heatmaps
from finetune.evaluation.paths import find_images
from finetune.runs.open import Saved, open_run
from finetune.say import Screen, progress, say
from finetune.training.metrics import probabilities

CHUNK = 64
IN_GRID = 24
COLUMNS = 4
GAP = 4


def explain_paths(run: str, paths: list[str], out: Path | None) -> None:
    """Explain a run's answers to the images that `paths` name, in a folder; in the run's own by default.

    Writes a PNG for each image and `grid.png` of the first 24. RequestError: there are no images, or no
    folder. RunError: an image cannot be read, the others are explained; or a file cannot be written.
    """
    saved = open_run(run)
    named = find_images(paths, sys.stdin, saved.settings.data)
    images = list(named)
    if not images:
        raise RequestError("-: expected names of images on stdin; there are none")
    folder = out or saved.folder / "explain"
    if any(isinstance(one, Path) and one.absolute().parent == folder.absolute() for one in images):
        raise RequestError(
            f"--out {folder}: expected another folder than the images', which would be written over"
        )
    make_out(folder)
    console, method = Screen(), ""
    named.tell(console)
    tiles: list[Image.Image] = []
    bad: list[BadImage] = []
    taken = {"grid"}
    with progress(console, "explain", len(images)) as advance:
        for start in range(0, len(images), CHUNK):
            chunk = images[start : start + CHUNK]
            pixels, broken = Reader(chunk, saved.preprocessing).all(saved.settings.data.workers)
            bad += broken
            good = sorted(set(range(len(chunk))) - {one.index for one in broken})
            if good:
                explained = heatmaps(saved, pixels[good])
                method = explained.method
                captions = answers(saved, explained.logits)
                for index, heat, caption in zip(good, explained.maps, captions, strict=True):
                    name = Path(str(chunk[index]))
                    tile = pair(pixels[index], heat, f"{caption} · {shown(name.name)}")
                    _save(tile, folder / f"{_free_name(name.stem, taken)}.png")
                    if len(tiles) < IN_GRID:
                        tiles.append(tile)
            advance(len(chunk))
    if tiles:
        _save(grid(tiles), folder / "grid.png")
        say(console, "explain", f"{counted(len(images) - len(bad), 'image')}, {method}")
        say(console, "folder", f"{folder}, the first {len(tiles)} in grid.png")
    if bad:
        told = brief([f"{one.path} ({one.reason})" for one in bad], 10)
        raise RunError(f"{len(bad):,} of {counted(len(images), 'image')} cannot be read: {told}")


def maps(saved: Saved, images: Sequence[RawImage], classes: Sequence[str]) -> list[Image.Image | None]:
    """Each image lit by what in it speaks for a class, given by its name; None where it cannot be read."""
    read = Reader(images, saved.preprocessing)
    pixels = {i: one for i in range(len(images)) if isinstance(one := read(i), Tensor)}
    lit: list[Image.Image | None] = [None] * len(images)
    if pixels:
        chosen = torch.tensor([saved.names.index(classes[i]) for i in pixels])
        explained = heatmaps(saved, torch.stack([*pixels.values()]), chosen)
        for (i, one), heat in zip(pixels.items(), explained.maps, strict=True):
            lit[i] = overlay(one, heat)
    return lit


def answers(saved: Saved, logits: Tensor) -> list[str]:
    """The likeliest class of each image with its probability, calibrated as `finetune predict` gives it."""
    likely = probabilities(logits, LOSSES[saved.settings.loss].softmax, temperature_of(saved.summary))
    predicted = logits.argmax(1).tolist()
    return [f"{saved.names[one]} {row[one]:.0%}" for row, one in zip(likely, predicted, strict=True)]


def overlay(image: Tensor, heat: Tensor) -> Image.Image:
    """An image, uint8 (3, H, W), in grey, lit by a heat map (H, W) in [0, 1]: from blue, cold, to yellow."""
    grey = image.float().mean(0, keepdim=True).permute(1, 2, 0).numpy() / 255
    colours = matplotlib.colormaps["viridis"](heat.numpy())[..., :3]
    return Image.fromarray((colours * (0.4 + 0.6 * grey) * 255).round().astype(np.uint8))


def pair(image: Tensor, heat: Tensor, caption: str) -> Image.Image:
    """The image, the same under its heat map, and a caption below both; no side under 160 pixels."""
    plain = to_pil_image(image)
    side = max(plain.width, 160)
    text = max(side // 10, 16)
    tile = Image.new("RGB", (2 * side + GAP, side + 2 * text), "white")
    for place, half in enumerate((plain, overlay(image, heat))):
        tile.paste(half.resize((side, side), Image.Resampling.BICUBIC), (place * (side + GAP), 0))
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", text)
    caption = " ".join(caption.split())  # one line
    while len(caption) > 1 and font.getlength(caption) > tile.width:
        caption = caption[:-2] + "…"
    ImageDraw.Draw(tile).text((0, side + text // 3), caption, "black", font)
    return tile


def grid(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles of one size in rows of four, left to right."""
    tensors = [pil_to_tensor(tile) for tile in tiles]
    return to_pil_image(make_grid(tensors, nrow=COLUMNS, padding=4 * GAP, pad_value=255))


def _save(image: Image.Image, target: Path) -> None:
    write_atomically(target, lambda file: image.save(file, "PNG", optimize=True))


def _free_name(name: str, taken: set[str]) -> str:
    number, chosen = 1, name
    while chosen.lower() in taken:  # some file systems do not tell A.png from a.png
        number += 1
        chosen = f"{name}-{number}"
    taken.add(chosen.lower())
    return chosen
