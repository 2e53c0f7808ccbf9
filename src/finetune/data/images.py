"""From an image file to a square uint8 tensor, and what to do with files that are broken."""

from __future__ import annotations

import io
import os
import struct
import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from finetune.data import limits
from finetune.data.colour import to_srgb
from finetune.data.dataset import RawImage, Stored
from finetune.data.digests import content_digest, name_digest
from finetune.errors import RunError
from finetune.model.preprocessing import Preprocessing

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),  # also MPO, which some cameras write: Pillow opens it as JPEG
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
EXTENSIONS = tuple(sorted(extension for extensions in FORMATS.values() for extension in extensions))
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# What is wrong with an image is told by us, with its path.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImage(Exception):
    """A file that cannot be decoded; the text is the reason, without the path.

    lasting: the reason lies in the file's content, so that it holds of every file with the same.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


class ChangedImage(RunError):
    """An image whose bytes are not those that its digest is of, or can no longer be read."""

    def __init__(self, image: RawImage, what: str = "changed since") -> None:
        super().__init__(f"{image}: {what} the run began, which goes by its content; run again")
        self.image = image


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded: its place in the data set, its file and the reason.

    lasting: the reason lies in the content.
    """

    index: int
    path: str
    reason: str
    lasting: bool = True


def decode(image: RawImage, preprocessing: Preprocessing, digest: str | None = None) -> Tensor:
    """Decode one image: shorter side to `resize_size`, then the central square of `crop_size` pixels.

    The geometry is that of torchvision's Resize and CenterCrop, to the pixel.

    digest: of the content that is expected.

    Returns: uint8 (3, crop_size, crop_size).
    Raises: BrokenImage; ChangedImage.
    """
    try:
        content = _content(image)
    except BrokenImage as error:
        unread = name_digest(image) if isinstance(image, Path) else None
        if error.lasting or digest in (None, unread):
            raise
        raise ChangedImage(image, f"{error}, though it could be read when") from error
    if digest is not None and digest != content_digest(content):
        raise ChangedImage(image)
    with ExitStack() as memory:
        return _cut(_open(content, preprocessing.resize_size, memory), preprocessing)


def _cut(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    resize, crop = preprocessing.resize_size, preprocessing.crop_size
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
    image = image.resize((crop, crop), FILTERS[preprocessing.interpolation], box=box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _content(image: RawImage) -> bytes | np.ndarray:
    """All that an image is made of, read once: what is hashed and decoded are these very bytes."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Path) and _is_something_else(image):
        raise BrokenImage("is no file", lasting=False)  # a named pipe would be waited for
    try:
        if isinstance(image, Stored):
            return image.read()
        with image.open("rb") as file:
            if os.fstat(file.fileno()).st_size > limits.BYTES:
                raise BrokenImage("more bytes than is safe to decode")
            return file.read()
    except BrokenImage:
        raise
    except Exception as error:  # whatever an archive raises
        raise BrokenImage(reason(error), lasting=False) from error


def _open(content: bytes | np.ndarray, least: int, memory: ExitStack) -> Image.Image:
    """The image in RGB; `memory` holds what decoding takes of all threads' budget."""
    try:
        if isinstance(content, np.ndarray):
            return _as_rgb(Image.fromarray(content))
        with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
            limits.check_limits(image, content)
            needed = limits.memory(image)
            image.draft("RGB", (2 * least, 2 * least))  # JPEGs only: decodes at 1/2, 1/4 or 1/8
            memory.enter_context(limits.DECODING.taking(needed))
            image.load()
            # A damaged EXIF is left aside, as viewers do.
            with suppress(SyntaxError, ValueError, TypeError, LookupError, struct.error):
                ImageOps.exif_transpose(image, in_place=True)  # else it would copy, turned or not
            return on_white(image)
    except Exception as error:  # there is no telling what a decoder raises on foreign bytes
        of_the_system = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno)
        raise BrokenImage(reason(error), lasting=not of_the_system) from error


def _is_something_else(path: Path) -> bool:
    # Unlike Path's own methods these take any name, however long.
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def on_white(image: Image.Image) -> Image.Image:
    """RGB as a person sees it: transparency on white, 16-bit grey scaled, colours in sRGB."""
    if image.mode.startswith(("I", "F")):
        array = np.nan_to_num(np.asarray(image, dtype=np.float32))
        top = 65535.0 if image.mode.startswith("I") else max(float(array.max()), 1e-12)
        return Image.fromarray((array / top * 255).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgba = to_srgb(rgba, image.info.get("icc_profile"))
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    if image.mode in ("P", "1", "PA"):
        image = image.convert("RGB")
    return _as_rgb(to_srgb(image, image.info.get("icc_profile")))


def _as_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def center_crop(images: Tensor, size: int) -> Tensor:
    """The central square of `size` pixels, a view of (..., H, W)."""
    top = (images.shape[-2] - size) // 2
    left = (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def reason(error: Exception) -> str:
    """Why an image cannot be used, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, Image.DecompressionBombError):
        return "more pixels than is safe to decode"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).partition("\n")[0] or type(error).__name__
