"""What an image may cost, seen before it is decoded."""

from __future__ import annotations

from PIL import Image

from finetune.data.pixels import SCAN, segments
from finetune.machine import Budget, ram

BYTES = 1 << 30  # of a file, which is held as a whole
PIXELS = (1 << 28) // 3  # Pillow itself allows twice that, or what a program has set there
SCANS = 100  # of a JPEG, each a pass over all its pixels; programs write about ten
TILES = 50_000  # of a TIFF, each decoded by itself
PIXEL_BYTES = {"JPEG": 10, "MPO": 10, "WEBP": 28}  # of memory a pixel while it is decoded; others: 20
DECODING = Budget(ram() // 4)


def check_limits(image: Image.Image, content: bytes) -> None:
    """Raise an error where decoding a file's content would take more than an image is worth.

    image: the same, opened but not yet decoded.
    """
    if image.width * image.height > PIXELS:
        raise Image.DecompressionBombError
    if len(getattr(image, "tile", ())) > TILES:
        raise ValueError("more tiles than is safe to decode")
    if image.format in ("JPEG", "MPO") and scans(content) > SCANS:
        raise ValueError("more scans than is safe to decode")


def scans(content: bytes) -> int:
    """The scans of a JPEG up to its end, or somewhat more where these are few enough."""
    if (found := content.count(b"\xff\xda")) <= SCANS:
        return found
    return sum(kind == SCAN for kind, _ in segments(content))


def of_the_system(error: Exception) -> bool:
    """Whether an error lies in the machine at this moment, not in an image's content."""
    told = isinstance(error, OSError) and str(error).startswith("out of memory")  # by Pillow's decoders
    return told or isinstance(error, MemoryError) or bool(getattr(error, "errno", None))


def memory(image: Image.Image) -> int:
    """The bytes that decoding takes at most, whatever is kept of it."""
    return image.width * image.height * PIXEL_BYTES.get(image.format or "", 20)
