"""Real files with broken bytes: each is refused with a reason, or shows something; nothing else happens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.data.sources import load_dataset
from finetune.model.preprocessing import Preprocessing

FORMATS = {
    "png": {},
    "jpg": {"quality": 85},
    "gif": {},
    "webp": {"quality": 80},
    "tif": {"compression": "tiff_lzw"},
}


def real_files(folder: Path) -> list[Path]:
    """Four pieces of clip art in each of five formats."""
    images = load_dataset("clipart", None, 0, 0).images
    paths = []
    for number, (extension, options) in enumerate(4 * list(FORMATS.items())):
        paths.append(folder / f"{number}.{extension}")
        with Image.open(str(images[37 * number])) as image:
            on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            on_white.convert("RGB").save(paths[-1], **options)
    return paths


def flipped(content: bytes, generator: np.random.Generator, others: list[bytes]) -> bytes:
    """One to sixteen bits turned over."""
    changed = bytearray(content)
    for place in generator.integers(0, 8 * len(content), generator.integers(1, 17)):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def truncated(content: bytes, generator: np.random.Generator, others: list[bytes]) -> bytes:
    """Cut off anywhere."""
    return content[: generator.integers(0, len(content))]


def spliced(content: bytes, generator: np.random.Generator, others: list[bytes]) -> bytes:
    """A stretch replaced by one of another file, of any length."""
    start, end = sorted(generator.integers(0, len(content), 2))
    other = others[generator.integers(len(others))]
    first, last = sorted(generator.integers(0, len(other), 2))
    return content[:start] + other[first:last] + content[end:]


CORRUPTIONS = (flipped, truncated, spliced)


def outcomes(folder: Path, count: int) -> Counter[str]:
    """Corrupt files so many times and decode each; asserts that nothing is shown black."""
    paths = real_files(folder)
    contents = [path.read_bytes() for path in paths]
    generator = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for number in range(count):
        path, corrupt = paths[number % len(paths)], CORRUPTIONS[number // len(paths) % len(CORRUPTIONS)]
        broken = folder / f"broken{path.suffix}"
        broken.write_bytes(corrupt(contents[number % len(paths)], generator, contents))
        result = Reader([broken], Preprocessing(64, 73))(0)
        if isinstance(result, BadImage):
            assert result.reason, number
            found["refused"] += 1
        else:
            assert isinstance(result, Tensor)
            assert result.any(), (number, "is black")
            found["shown"] += 1
    return found


@pytest.mark.filterwarnings("ignore")
def test_two_hundred_corruptions(tmp_path: Path) -> None:
    assert min(outcomes(tmp_path, 200).values()) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_corruptions(tmp_path: Path) -> None:
    assert min(outcomes(tmp_path, 2000).values()) > 200
