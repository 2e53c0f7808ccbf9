"""From an image file to a square uint8 tensor, and what to do with files that are broken."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from finetune.data import limits
from finetune.data.dataset import RawImage, Stored
from finetune.data.digests import content_digest, name_digest
from finetune.data.pixels import END, FORMATS, JPEG, ends_in_zeros, lacks_only_its_end, on_white, rgb, square
from finetune.errors import RunError
from finetune.model.preprocessing import Preprocessing

EXTENSIONS = tuple(sorted(extension for extensions in FORMATS.values() for extension in extensions))


class Lenient(local):
    """Pillow's switch for files that are cut off, for one thread where its own is for all."""

    on = bool(ImageFile.LOAD_TRUNCATED_IMAGES)

    def __bool__(self) -> bool:
        return self.on


LENIENT: Any = Lenient()
# What is there instead where an image was not fetched, by its first bytes.
INSTEAD = dict.fromkeys((b"<!doctype html", b"<html"), "a web page, not an image") | {
    b"version https://git-lfs": "a Git LFS pointer, not the image; git lfs pull fetches it"
}
ImageFile.LOAD_TRUNCATED_IMAGES = LENIENT

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
        advice = "run again"
        if isinstance(image, Stored) and image.alone:
            advice = "expected the same image each time; what is random belongs into transform="
        super().__init__(f"{image}: {what} the run began, which goes by its content; {advice}")
        self.image, self.what = image, what

    def __reduce__(self) -> tuple[type[ChangedImage], tuple[Any, str]]:
        # Else a pickled one would be made of its message; what reads an image may be no thing to pickle.
        return ChangedImage, (self.image if isinstance(self.image, Path) else str(self.image), self.what)


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded: its place in the data set, its file and the reason.

    lasting: the reason lies in the content.
    """

    index: int
    path: str
    reason: str
    lasting: bool = True


def decode(
    image: RawImage,
    preprocessing: Preprocessing,
    digest: str | None = None,
    repaired: Callable[[str], object] = lambda _: None,
) -> Tensor:
    """Decode one image to a square of `crop_size` pixels.

    digest: of the content that is expected.
    repaired: called with what is wrong with an image that is shown all the same (`preprocessing.repair`).

    Returns: uint8 (3, crop_size, crop_size).
    Raises: BrokenImage; ChangedImage.
    """
    with opened(image, preprocessing, digest, repaired) as whole:
        resize, crop = preprocessing.resize_size, preprocessing.crop_size
        pixels = square(
            whole, resize, crop, preprocessing.interpolation, fit=preprocessing.fit, mean=preprocessing.mean
        )
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # torch would use many threads


@contextmanager
def opened(
    image: RawImage,
    preprocessing: Preprocessing,
    digest: str | None = None,
    repaired: Callable[[str], object] = lambda _: None,
) -> Iterator[Image.Image]:
    """The whole image in RGB, not smaller than `decode` needs it; parameters and errors as there."""
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
        yield _open(content, preprocessing, memory, repaired)


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


def _open(
    content: bytes | np.ndarray,
    preprocessing: Preprocessing,
    memory: ExitStack,
    repaired: Callable[[str], object],
) -> Image.Image:
    """The image in RGB; `memory` holds what decoding takes of all threads' budget."""
    try:
        if isinstance(content, np.ndarray):
            return on_white(Image.fromarray(content), preprocessing.brightness)
        try:
            return _read(content, preprocessing, memory)
        except Exception as error:
            lacks_end = isinstance(error, OSError) and lacks_only_its_end(content)
            memory.close()
            if lacks_end:
                return _read(content + END, preprocessing, memory)
            if not preprocessing.repair or limits.of_the_system(error):
                raise
            shown = _read_what_is_there(content, preprocessing, memory)
            repaired(reason(error))
            return shown
    except Exception as error:  # there is no telling what a decoder raises on foreign bytes
        raise BrokenImage(reason(error), lasting=not limits.of_the_system(error)) from error


def _read(content: bytes, preprocessing: Preprocessing, memory: ExitStack) -> Image.Image:
    if ends_in_zeros(content):
        raise OSError("the file is cut off: zeros stand for the rest of it")
    with _identified(content) as image:
        limits.check_limits(image, content)
        memory.enter_context(limits.DECODING.taking(limits.memory(image)))
        return rgb(image, preprocessing.resize_size, preprocessing.brightness)


def _identified(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        for start, instead in INSTEAD.items():
            if content[:64].lstrip().lower().startswith(start):
                raise OSError(instead) from None
        if not content:
            raise OSError("the file is empty") from None
        raise


def _read_what_is_there(content: bytes, preprocessing: Preprocessing, memory: ExitStack) -> Image.Image:
    """A file that is cut off, as viewers show it: what is missing is grey or black."""
    before, LENIENT.on = LENIENT.on, True
    try:
        return _read(content + END * content.startswith(JPEG), preprocessing, memory)
    finally:
        LENIENT.on = before


def _is_something_else(path: Path) -> bool:
    # Unlike Path's own methods these take any name, however long.
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


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
