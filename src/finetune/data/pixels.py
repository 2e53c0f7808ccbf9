"""From an opened image file to the square of pixels that a model sees.

It needs Pillow and NumPy alone: `finetune export` puts this very text into predict.py.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
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
COLOURS = bytes((64, 64, 64, 128, 128, 128, 192, 192, 192, 160, 96, 96, 96, 160, 96, 96, 96, 160))
ROUNDED = 8  # levels that profiles of sRGB may differ by in these
SPACES = {"RGB": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}

JPEG, END = b"\xff\xd8", b"\xff\xd9"
MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # of a JPEG
BASELINE, RESTART, SCAN = (0xC0, 0xC1), 0xDD, 0xDA
PHOTOMETRIC = 262  # of TIFF's tags
THINNEST = 2  # pixels: a line shows nothing

# What is black and what is white where a pixel has more than 8 bits, for whole numbers (I) and floats (F).
Brightness = Mapping[str, Sequence[float]]


def rgb(image: Image.Image, least: int, brightness: Brightness) -> Image.Image:
    """An opened image, decoded, upright and in 8-bit sRGB.

    least: pixels that are needed of the shorter side; JPEGs are decoded at a half, a quarter or an eighth of
        their size where that is twice as many.
    """
    if min(image.size) < THINNEST:
        raise ValueError(f"{image.width} x {image.height} pixels, too thin to show anything")
    image.draft("RGB", (2 * least, 2 * least))
    image.load()
    # A damaged EXIF is left aside, as viewers do.
    with suppress(SyntaxError, ValueError, TypeError, LookupError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)  # else it would copy, turned or not
    return on_white(image, brightness)


def segments(content: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG up to its end, each with the place of what belongs to it: its length first."""
    place = 2
    while (marker := MARKER.search(content, place)) and marker[1] != END[1:]:
        yield marker[1][0], marker.end()
        place = marker.end() + max(2, int.from_bytes(content[marker.end() : marker.end() + 2]))


def ends_in_zeros(content: bytes) -> bool:
    """Whether a JPEG has zeros where its data should go on, as of a download that was cut off.

    A decoder takes them for pixels.
    """
    if not (content.startswith(JPEG) and content.endswith(bytes(64))):
        return False
    place = max((at for kind, at in segments(content) if kind == SCAN), default=0)
    return END not in content[place:]


def lacks_only_its_end(content: bytes) -> bool:
    """Whether a JPEG has all its pixels but no end marker; False where that cannot be told.

    It can of a baseline file in one scan without restart markers. That is decoded as if it were higher: the
    first block of the added rows shows something where the data ends in it, and is grey where it ends before.
    """
    found = list(segments(content)) if content.startswith(JPEG) else []
    kinds = [kind for kind, _ in found]
    frames, scans = ([at for kind, at in found if kind in some] for some in (BASELINE, (SCAN,)))
    if len(frames) != 1 or len(scans) != 1 or RESTART in kinds or content.endswith(bytes(2)):
        return False
    (frame,), (scan,) = frames, scans
    try:
        colours = content[frame + 7]
        if colours != content[scan + 2]:  # the others are in a scan that is missing
            return False
        height = int.from_bytes(content[frame + 3 : frame + 5])
        higher = content[: frame + 3] + (height + 64).to_bytes(2) + content[frame + 5 :]
        with Image.open(io.BytesIO(higher.removesuffix(END[:1]) + END), formats=("JPEG",)) as image:
            image.draft("L", None)
            return image.mode == "L" and _ends_after(
                np.asarray(image), height, content[frame + 9 : frame + 8 + 3 * colours : 3]
            )
    except Exception:  # broken otherwise, which the first attempt has told
        return False


def _ends_after(grey: np.ndarray, height: int, sampling: bytes) -> bool:
    """Whether a JPEG's data ends in the first block below its true height; sampling: of each colour."""
    right, down = sampling[0] >> 4, sampling[0] & 15
    if any(one >> 4 > right or one & 15 > down for one in sampling):
        return False
    wide, tall = (8 * right, 8 * down) if len(sampling) > 1 else (8, 8)
    added = grey[-(-height // tall) * tall :] != 128
    first = bool(added[:tall, :wide].any())
    added[:tall, :wide] = False
    return first and not added.any()


def square(
    image: Image.Image, resize: int, crop: int, interpolation: str, fit: str, mean: Sequence[float]
) -> np.ndarray:
    """An image as a square of `crop` pixels: uint8 (H, W, 3).

    fit: center, the central square once the shorter side is made `resize`, with the geometry of torchvision's
        Resize and CenterCrop, to the pixel; squash, all of it, whatever its shape; pad, all of it with its
        shape kept, on a ground of the mean colour, in [0, 1].
    """
    width, height = image.size
    if fit == "squash":
        return np.array(image.resize((crop, crop), FILTERS[interpolation]))
    if fit == "pad":
        ground = tuple(round(255 * level) for level in mean)
        sides = [max(1, round(side / max(image.size) * crop)) for side in image.size]
        if 1 in sides:  # Pillow itself leaves nothing of a very thin one
            image = image.resize((sides[0], sides[1]), FILTERS[interpolation])
        return np.array(ImageOps.pad(image, (crop, crop), FILTERS[interpolation], color=ground))
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
        shown = image.convert("L") if image.mode in ("L", "LA") else rgba  # as the profile is of
        white = Image.new("RGB", rgba.size, "white")
        white.paste(to_srgb(shown, image.info.get("icc_profile")), mask=rgba)
        return white
    if image.mode in ("P", "1", "PA"):
        image = image.convert("RGB")
    return as_rgb(to_srgb(image, image.info.get("icc_profile")))


def _in_eight_bits(image: Image.Image, brightness: Brightness) -> np.ndarray:
    """Grey of more bits as uint8 (H, W); of a kind without a scale up to 65,535, or a float's own largest."""
    exact = np.float64 if image.mode == "I" else np.float32
    values: Any = np.array(image, dtype=exact)
    if not np.isfinite(values).any():
        raise ValueError("no finite pixel")
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
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:  # a TIFF in which 0 is white
        shades = 255 - shades
    if isinstance(transparent := image.info.get("transparency"), int):
        shades[np.asarray(image) == transparent] = 255
    return shades


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; itself where it is."""
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in sRGB; as it is where it has no profile, sRGB's, or one that does not fit."""
    # Some programs write a profile anew for each image, which differs in its date alone.
    undated = profile and profile[:24] + bytes(12) + profile[36:]
    if not undated or (transform := _transform(undated, image.mode)) is None:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it would be in place only
    return converted


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode not in SPACES.get(own.profile.xcolor_space.strip(), ()):
            return None
        to = mode if mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, to)
        if "sRGB" in (own.profile.profile_description or "") and mode in SPACES["RGB"]:
            # There are linear ones of that name, and ones of other colours.
            colours = Image.frombytes("RGB", (len(COLOURS) // 3, 1), COLOURS).convert(mode)
            moved = np.asarray(ImageCms.applyTransform(colours, transform), np.int16) - np.asarray(colours)
            return None if np.abs(moved).max() <= ROUNDED else transform
        return transform
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile: viewers leave it aside
        return None
