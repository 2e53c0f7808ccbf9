"""The images in TensorBoard: grids with a text below each, thumbnails for PROJECTOR, the confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from finetune.data.dataset import RawImage
from finetune.data.images import BrokenImage, decode
from finetune.errors import shown
from finetune.machine import cores
from finetune.model.preprocessing import Preprocessing
from finetune.report.charts import shortened

RED, GREY = "#c00000", 221
TILE = 64  # pixels of a thumbnail in PROJECTOR: 5,000 of them are less than the 8,192 it takes a side


def image_grid(images: Tensor, captions: Sequence[str], answers: Sequence[str] = ()) -> np.ndarray:
    """Images (B, 3, H, W), four in a row, 128 px each, with a line below each: (H, W, 3).

    answers: the wrong ones, which have a line of their own, in red like a frame; empty for the others.
    """
    cell = 166 if any(answers) else 150
    grid = Image.new("RGB", (4 * 132, -(-len(images) // 4) * cell), "white")  # which IMAGES shrinks to 350
    draw = ImageDraw.Draw(grid)
    for place, (one, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = place % 4 * 132, place // 4 * cell
        grid.paste(to_pil_image(one).resize((128, 128)), (left, top))
        draw.text((left, top + 130), shortened(shown(caption), 18), "black", _font())
        if answer := "".join(answers[place : place + 1]):
            draw.rectangle((left, top, left + 127, top + 127), outline=RED, width=4)
            draw.text((left, top + 147), answer, RED, _font(12))
    return np.asarray(grid)


def thumbnails(images: Sequence[RawImage], how: Preprocessing, size: int, seconds: float = inf) -> Tensor:
    """Squares as the model sees them, uint8 (B, 3, size, size); grey where one cannot be read.

    seconds: how long it may take; those for which it was too short, drawn by lot, are grey as well.
    """
    until, squares = time.monotonic() + seconds, torch.full((len(images), 3, size, size), GREY).byte()
    how = replace(how, crop_size=size, resize_size=size)

    def fill(place: int) -> None:
        if time.monotonic() < until:
            with suppress(BrokenImage):
                squares[place] = decode(images[place], how)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, np.random.default_rng(0).permutation(len(images)).tolist()))
    return squares


def confusion_image(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The confusion matrix (H, W, 3); shares of each true class as colour, counts and names of at most 40."""
    (rows, columns), font = matrix.shape, _font()
    cell = max(1, min(max(30, 240 // columns), 1000 // columns))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    colours = (255 + shares[..., None] * (np.array([8, 48, 107]) - 255)).astype(np.uint8)
    squares = Image.fromarray(colours).resize((columns * cell, rows * cell), Image.Resampling.NEAREST)
    if columns > 40:
        return np.asarray(squares)
    names = [shortened(shown(name)) for name in [*classes, "other"][:columns]]
    margin = int(max(map(font.getlength, [*names, "predicted"]))) + 12
    image = Image.new("RGB", (margin + columns * cell, margin + rows * cell), "white")
    turned = image.rotate(-90, expand=True)  # to write the names of columns from below
    for place, name in enumerate(names):
        middle = margin + (place + 0.5) * cell
        ImageDraw.Draw(turned).text((turned.width - margin + 6, middle), name, "black", font, anchor="lm")
    image = turned.rotate(90, expand=True)
    image.paste(squares, (margin, margin))
    draw = ImageDraw.Draw(image)
    draw.text((6, 6), "true /\npredicted", "grey", font)
    for place, name in enumerate(names[:rows]):
        draw.text((margin - 6, margin + (place + 0.5) * cell), name, "black", font, anchor="rm")
    for row, column in np.argwhere(matrix):
        middle = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
        ink = "white" if shares[row, column] > 0.5 else "black"
        draw.text(middle, str(matrix[row, column]), ink, font, anchor="mm")
    return np.asarray(image)


def _font(size: int = 13) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
