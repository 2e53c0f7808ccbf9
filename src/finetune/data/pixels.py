"""From an opened image file to the square of pixels that a model sees.

It needs Pillow and NumPy alone: `finetune export` puts this very text into predict.py.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, features

FORMATS = {
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo"),  # MPO, of some cameras: Pillow opens it so
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
HEIF = (".heic", ".heif", ".hif")
with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    FORMATS["HEIF"] = HEIF
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
SPACES = {"RGB": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}

# What is black and what is white where a pixel has more than 8 bits, for whole numbers (I) and floats (F).
Brightness = Mapping[str, Sequence[float]]


def rgb(image: Image.Image, least: int, brightness: Brightness) -> Image.Image:
    """An opened image, decoded, upright and in 8-bit sRGB.

    least: pixels that are needed of the shorter side; JPEGs are decoded at a half, a quarter or an eighth of
        their size where that is twice as many.
    """
    image.draft("RGB", (2 * least, 2 * least))
    image.load()
    # A damaged EXIF is left aside, as viewers do.
    with suppress(SyntaxError, ValueError, TypeError, LookupError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)  # else it would copy, turned or not
    return on_white(image, brightness)


def square(image: Image.Image, resize: int, crop: int, interpolation: str) -> np.ndarray:
    """The central square of `crop` pixels of an image whose shorter side is made `resize`: uint8 (H, W, 3).

    The geometry is that of torchvision's Resize and CenterCrop, to the pixel.
    """
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
    return np.array(image.resize((crop, crop), FILTERS[interpolation], box=box))


def on_white(image: Image.Image, brightness: Brightness) -> Image.Image:
    """RGB as a person sees it: transparency on white, more than 8 bits scaled to 8, colours in sRGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_in_eight_bits(image, brightness)).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgba = to_srgb(rgba, image.info.get("icc_profile"))
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    if image.mode in ("P", "1", "PA"):
        image = image.convert("RGB")
    return as_rgb(to_srgb(image, image.info.get("icc_profile")))


def _in_eight_bits(image: Image.Image, brightness: Brightness) -> np.ndarray:
    """Grey of more bits as uint8 (H, W); of a kind without a scale up to 65,535, or a float's own largest."""
    exact = np.float64 if image.mode == "I" else np.float32
    values: Any = np.array(image, dtype=exact)
    if image.mode[0] in brightness:
        black, white = brightness[image.mode[0]]
    else:
        largest = values.max(where=np.isfinite(values), initial=1e-12)
        black, white = 0.0, 65535.0 if image.mode.startswith("I") else float(largest)
    values -= black
    values /= white - black
    values *= 255
    np.nan_to_num(values, copy=False, posinf=255, neginf=0)
    shades = values.clip(0, 255, out=values).round(out=values).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        shades[np.asarray(image) == transparent] = 255
    return shades


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; itself where it is."""
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in sRGB; as it is where it has no profile, sRGB's, or one that does not fit."""
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it would be in place only
    return converted


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = own.profile.profile_description or ""
        if "sRGB" in name or mode not in SPACES.get(own.profile.xcolor_space.strip(), ()):
            return None
        to = mode if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, to)
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile: viewers leave it aside
        return None
