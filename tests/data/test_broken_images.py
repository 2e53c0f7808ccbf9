"""Broken images are named with their reason, and nothing else is raised."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageFilter
from torch import Tensor

from finetune.data.dataset import Stored
from finetune.data.images import EXTENSIONS, BadImage, BrokenImage, decode
from finetune.data.pixels import lacks_only_its_end
from finetune.data.reader import Reader
from finetune.model.preprocessing import Preprocessing
from support.painted import noise, photograph, save_as
from support.privilege import without_privilege


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_a_line_shows_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert bad(tmp_path / "a.png").reason == f"{size[0]} x {size[1]} pixels, too thin to show anything"


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    Image.fromarray(noise(8, 8)).save("a.png")
    Path("a.png").chmod(0)
    with without_privilege():
        found = bad(Path("a.png"))
    assert found == BadImage(0, "a.png", "permission denied", lasting=False)


def test_what_the_content_says_lasts_and_what_the_system_says_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert bad(tmp_path / "empty.png").lasting
    assert not bad(tmp_path / "folder.png").lasting
    assert not bad(tmp_path / "gone.png").lasting


@pytest.mark.parametrize("repair", [False, True])
def test_a_lack_of_memory_is_none_of_the_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repair: bool
) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    for short in (MemoryError(), ImageFile._get_oserror(-9, encoder=False)):
        monkeypatch.setattr(ImageFile.ImageFile, "load", Mock(side_effect=[short, None]))
        found = Reader([tmp_path / "a.png"], Preprocessing(8, 8, repair=repair))(0)
        assert isinstance(found, BadImage)
        assert not found.lasting


def test_what_is_known_to_be_bad_is_not_tried_again(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    known = BadImage(0, "a", "seen before")
    assert Reader([tmp_path / "a.png"], Preprocessing(8, 8), {0: known})(0) == known


def test_a_picture_inside_something_larger_is_decoded_like_a_file(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    whole, cut = Stored("archive/a.png", lambda: content), Stored("archive/b.png", lambda: content[:60])
    assert np.array_equal(decode(whole, Preprocessing(8, 8)).permute(1, 2, 0).numpy(), noise(8, 8))
    found = Reader([cut], Preprocessing(8, 8))(0)
    assert isinstance(found, BadImage)
    assert found.path == "archive/b.png"


def whole_files(folder: Path) -> list[Path]:
    paths = [folder / f"whole{extension}" for extension in EXTENSIONS]
    for path in paths:
        save_as(photograph(40, 60), path)
    return paths


def bad(path: Path) -> BadImage:
    found = Reader([path], Preprocessing(32, 36))(0)
    assert isinstance(found, BadImage)
    return found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is no image", "not an image, or of an unknown format"),
        (b"\r\n<!DOCTYPE html><html>404", "a web page, not an image"),
        (b"<HTML><body>moved", "a web page, not an image"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a Git LFS pointer, not the image; git lfs pull fetches it",
        ),
    ],
)
def test_empty_and_foreign_files_are_named_with_their_reason(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert bad(path) == BadImage(0, str(path), reason)


def test_a_format_that_is_not_offered_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="TGA")
    assert bad(tmp_path / "a.png").reason == "not an image, or of an unknown format"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert bad(tmp_path / "gone.png").reason == "no such file or directory"
    (tmp_path / "folder.png").mkdir()
    assert bad(tmp_path / "folder.png").reason == "is a directory"


@pytest.mark.slow
def test_a_truncated_file_is_broken_or_shows_all_that_matters(tmp_path: Path) -> None:
    for path in whole_files(tmp_path):
        content = path.read_bytes()
        whole = decode(path, Preprocessing(32, 36))
        for length in range(1, len(content), max(1, len(content) // 25)):
            path.write_bytes(content[:length])
            found = Reader([path], Preprocessing(32, 36))(0)
            if isinstance(found, BadImage):
                assert found.path == str(path)
                assert found.reason
            else:  # a trailer is missing, no pixels
                assert torch.equal(found, whole), (path.suffix, length)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"optimize": True}])
def test_a_jpeg_that_lacks_only_its_end_is_whole(tmp_path: Path, options: dict[str, int]) -> None:
    path, how = tmp_path / "a.jpg", Preprocessing(32, 36)
    for shown in (photograph(40, 60), photograph(300, 400), photograph(41, 67).convert("L")):
        shown.save(path, quality=90, **options)
        content, whole = path.read_bytes(), decode(path, how)
        for lacking in (1, 2):
            path.write_bytes(content[:-lacking])
            assert torch.equal(decode(path, how), whole)
        for lacking in (3, 4, 5, 20, 300):
            path.write_bytes(content[:-lacking])
            assert "truncated" in bad(path).reason
            assert not lacks_only_its_end(content[:-lacking] + bytes(lacking))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_zeros_for_the_rest_of_a_jpeg_are_no_pixels(tmp_path: Path, options: dict[str, int]) -> None:
    path, how = tmp_path / "a.jpg", Preprocessing(32, 36)
    photograph(60, 80).save(path, quality=90, **options)
    content, whole = path.read_bytes(), decode(path, how)
    for part in (2, 3, 10):
        path.write_bytes(content[: -len(content) // part] + bytes(len(content)))
        assert "cut off" in bad(path).reason
        assert decode(path, replace(how, repair=True)).shape == whole.shape
    path.write_bytes(content + bytes(1000))
    assert torch.equal(decode(path, how), whole)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}, {}]
)
def test_no_place_where_a_jpeg_is_cut_passes_for_its_end(options: dict[str, int]) -> None:
    stored = io.BytesIO()
    photograph(48, 64).filter(ImageFilter.GaussianBlur(2)).save(stored, "JPEG", quality=80, **options)
    content = stored.getvalue()
    cuts = range(content.index(b"\xff\xda"), len(content) - 2)
    assert len(cuts) > 300
    assert not any(lacks_only_its_end(content[:length]) for length in cuts)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.bmp"])
def test_what_is_cut_off_is_shown_as_far_as_it_goes_where_that_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    path, how = tmp_path / name, Preprocessing(64, 64, repair=True)
    Image.fromarray(noise(64, 64)).save(path, quality=100, subsampling=0)
    whole = decode(path, how).int()
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    reader = Reader([path], how)
    shown = reader(0)
    assert isinstance(shown, Tensor)
    upper = slice(32, None) if name == "a.bmp" else slice(None, 32)  # which begins at the bottom
    assert (shown.int() - whole)[:, upper].abs().max() == 0
    assert "truncated" in reader.repaired[0].reason
    assert "truncated" in bad(path).reason  # in the next breath, where it is not asked for
    path.write_bytes(b"no image at all")
    assert isinstance(reader(0), BadImage)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    outcomes = {BadImage: 0, Tensor: 0}
    for path in whole_files(tmp_path):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            changed = content.copy()
            changed[generator.integers(0, len(content), 8)] = generator.integers(0, 256, 8)
            path.write_bytes(changed.tobytes())
            outcomes[type(Reader([path], Preprocessing(32, 36))(0))] += 1
    assert min(outcomes.values()) > 10


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size; there are no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9_500, 9_500), (14_000, 14_000), (100_000, 100_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png_of_size(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bad(tmp_path / "a.png").reason == "more pixels than is safe to decode"


def test_what_a_program_sets_of_pillow_makes_no_image_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "large.png").write_bytes(png_of_size(14_000, 14_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(tmp_path / "a.png", Preprocessing(32, 36)).shape == (3, 32, 32)
    assert bad(tmp_path / "large.png").reason == "more pixels than is safe to decode"


def test_decode_raises_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BrokenImage, match=r"^the file is empty$"):
        decode(tmp_path / "a.png", Preprocessing(32, 36))


@pytest.mark.parametrize("workers", [1, 3, "auto"])
def test_all_pictures_in_order_with_the_bad_ones_named(tmp_path: Path, workers: int | str) -> None:
    images: list[Path | np.ndarray] = [noise(32, 32, seed) for seed in range(40)]
    for index in (7, 23):
        images[index] = tmp_path / f"{index}.png"
    Image.fromarray(noise(32, 32, 23)).save(tmp_path / "23.png")
    done: list[int] = []
    pixels, broken = Reader(images, Preprocessing(32, 32)).all(workers, done.append)
    assert [(one.index, one.path) for one in broken] == [(7, str(tmp_path / "7.png"))]
    assert sum(done) == 40
    for index in set(range(40)) - {7}:
        assert np.array_equal(pixels[index].permute(1, 2, 0).numpy(), noise(32, 32, index))
    assert not pixels[7].any()


def test_a_name_longer_than_there_can_be_is_a_bad_picture(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="file name too long"):
        decode(tmp_path / ("x" * 300), Preprocessing(8, 8))
