"""From a picture file to a square uint8 tensor, and what to do with files that are broken."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),  # also MPO, which some cameras write: Pillow opens it as JPEG
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
EXTENSIONS = tuple(sorted(extension for extensions in FORMATS.values() for extension in extensions))
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# What is wrong with a picture is told by us, with its path.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenPicture(Exception):
    """A file that cannot be decoded; the text is the reason, without the path."""


@dataclass(frozen=True)
class BadImage:
    """A picture that cannot be decoded: its place in the data set, its file and the reason."""

    index: int
    path: str
    reason: str


def decode(picture: Path | np.ndarray, resize: int, crop: int, interpolation: str) -> Tensor:
    """Decode one picture: shorter side to `resize`, then the central square of `crop` pixels.

    The geometry is that of torchvision's Resize and CenterCrop, to the pixel.

    Returns: uint8 (3, crop, crop).
    Raises: BrokenPicture.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(picture).convert("RGB")
    else:
        image = _open(picture, resize)
    width, height = image.size
    shorter = min(width, height)
    across, down = (max(crop, int(resize * side / shorter)) for side in (width, height))
    # Only the central square is resampled: a 1 x 20,000 strip must not become gigabytes on the way.
    left, top = round((across - crop) / 2), round((down - crop) / 2)
    box = (
        left / across * width,
        top / down * height,
        (left + crop) / across * width,
        (top + crop) / down * height,
    )
    image = image.resize((crop, crop), FILTERS[interpolation], box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _open(path: Path, least: int) -> Image.Image:
    if path.exists() and not (path.is_file() or path.is_dir()):  # a named pipe would be waited for
        raise BrokenPicture("is no file")
    try:
        with Image.open(path, formats=tuple(FORMATS)) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):  # Pillow itself allows twice that
                raise Image.DecompressionBombError
            image.draft("RGB", (2 * least, 2 * least))  # JPEGs only: decodes at 1/2, 1/4 or 1/8
            return on_white(ImageOps.exif_transpose(image))
    except Exception as error:  # there is no telling what a decoder raises on foreign bytes
        raise BrokenPicture(reason(error)) from error


def on_white(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: transparency on white, 16-bit grey scaled."""
    if image.mode.startswith(("I", "F")):
        array = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if image.mode.startswith("I") else max(float(array.max()), 1e-12)
        return Image.fromarray((array / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Reader:
    """Decodes the pictures of a data set by their index, all in the same way."""

    pictures: Sequence[Path | np.ndarray]
    resize: int
    crop: int
    interpolation: str

    def __call__(self, index: int) -> Tensor | BadImage:
        """uint8 (3, crop, crop), or what is wrong with the picture."""
        picture = self.pictures[index]
        try:
            return decode(picture, self.resize, self.crop, self.interpolation)
        except BrokenPicture as error:
            return BadImage(index, str(picture), str(error))

    def all(
        self,
        workers: int | str,
        advance: Callable[[int], None] = lambda _: None,
        room: Callable[[tuple[int, ...]], Tensor] = lambda shape: torch.zeros(shape, dtype=torch.uint8),
    ) -> tuple[Tensor, list[BadImage]]:
        """Decode every picture once, in threads.

        room: gives the tensor to fill, for its shape; in memory by default.
        Returns: uint8 (N, 3, crop, crop), zero where a picture is bad, and the bad ones.
        """
        pixels = room((len(self.pictures), 3, self.crop, self.crop))
        bad = []
        with ThreadPoolExecutor(workers if isinstance(workers, int) else os.cpu_count() or 1) as pool:
            for index, picture in enumerate(pool.map(self, range(len(self.pictures)))):
                advance(1)
                if isinstance(picture, BadImage):
                    bad.append(picture)
                else:
                    pixels[index] = picture
        return pixels, bad


def reason(error: Exception) -> str:
    """Why a picture cannot be used, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than is safe to decode"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).partition("\n")[0] or type(error).__name__
