"""Colours as a screen shows them: what a file's own profile means, in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, ImageCms

SPACES = {"RGB": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}


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
