"""Files that would cost more than an image is worth are refused before they are decoded."""

from __future__ import annotations

import io
import struct
import time
from pathlib import Path
from threading import Lock

import pytest
from PIL import Image
from torch import Tensor

from finetune.data import limits, pixels
from finetune.data.images import BadImage
from finetune.data.reader import Reader
from finetune.machine import Budget
from finetune.model.preprocessing import Preprocessing
from support.painted import photograph


def progressive(scans: int, size: int = 1000) -> bytes:
    """A real progressive JPEG whose last scan is there so many times more."""
    stored = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(stored, "JPEG", progressive=True)
    whole = stored.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scans * last + whole[-2:]


def tiled(side: int) -> bytes:
    """An uncompressed grey TIFF of side x side tiles, each a pixel, all of them the same byte of the file."""
    count = side * side
    short, long = 3, 4
    entries = [(256, short, 1, side), (257, short, 1, side), (258, short, 1, 8), (259, short, 1, 1)]
    entries += [(262, short, 1, 1), (322, short, 1, 1), (323, short, 1, 1)]
    offsets = 8 + 2 + 12 * 9 + 4 + 1
    entries += [(324, long, count, offsets), (325, long, count, offsets + 4 * count)]
    directory = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    pixel, where = b"\x80", struct.pack("<I", offsets - 1)
    return b"II*\0" + struct.pack("<I", 8) + directory + pixel + count * where + count * struct.pack("<I", 1)


def read(path: Path, content: bytes) -> Tensor | BadImage:
    path.write_bytes(content)
    return Reader([path], Preprocessing(32, 36))(0)


def refused(found: Tensor | BadImage, reason: str) -> bool:
    return isinstance(found, BadImage) and found.reason == reason and found.lasting


def test_a_jpeg_of_two_thousand_scans_is_refused_at_once(tmp_path: Path) -> None:
    started = time.process_time()
    assert refused(read(tmp_path / "a.jpg", progressive(2000)), "more scans than is safe to decode")
    assert time.process_time() - started < 1  # decoding takes three seconds


def test_a_progressive_jpeg_as_programs_write_it_is_shown(tmp_path: Path) -> None:
    assert limits.scans(progressive(0)) == 10
    assert isinstance(read(tmp_path / "a.jpg", progressive(50, 100)), Tensor)


@pytest.mark.parametrize("where", ["in a comment", "after the end"])
def test_what_only_looks_like_scans_does_not_count(tmp_path: Path, where: str) -> None:
    whole, noise = progressive(0, 100), 500 * b"\xff\xda\x00"
    if where == "in a comment":
        content = whole[:2] + b"\xff\xfe" + (len(noise) + 2).to_bytes(2) + noise + whole[2:]
    else:  # as where a film follows the photograph
        content = whole + noise
    assert limits.scans(content) == 10
    assert isinstance(read(tmp_path / "a.jpg", content), Tensor)


def test_a_tiff_of_very_many_tiles_is_refused(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path / "a.tif", tiled(40)), Tensor)
    assert refused(read(tmp_path / "a.tif", tiled(300)), "more tiles than is safe to decode")


def test_a_file_of_very_many_bytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(3 << 30)  # zeros that take no room on the disk
    assert refused(
        Reader([tmp_path / "a.png"], Preprocessing(32, 36))(0), "more bytes than is safe to decode"
    )


def test_a_gif_whose_first_frame_is_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    stored = io.BytesIO()
    Image.new("P", (8, 8)).save(stored, "GIF")
    content = bytearray(stored.getvalue())
    frame = content.index(b",\0\0\0\0\x08\0\x08\0")
    content[frame + 5 : frame + 9] = struct.pack("<HH", 65_535, 65_535)
    assert refused(read(tmp_path / "a.gif", bytes(content)), "more pixels than is safe to decode")


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_of_many_frames_only_the_first_is_decoded(tmp_path: Path, extension: str) -> None:
    frames = [photograph(40, 60).rotate(angle) for angle in range(60)]
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    whole = path.read_bytes()
    first = Reader([path], Preprocessing(32, 36))(0)
    assert isinstance(first, Tensor)
    assert Image.open(path).n_frames == 60  # type: ignore[attr-defined]
    frames[0].save(path)
    alone = Reader([path], Preprocessing(32, 36))(0)
    assert isinstance(alone, Tensor)
    assert (first.int() - alone.int()).abs().max() <= (0 if extension != "webp" else 16)
    if extension == "gif":  # nothing after the first frame is even looked at
        assert isinstance(read(path, whole[: len(whole) // 2]), Tensor)


def test_all_threads_together_keep_to_one_budget_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    photograph(100, 100).save(path)
    each, lock, now, most = 100 * 100 * 20, Lock(), [0], [0]

    on_white = pixels.on_white

    def counted(image: Image.Image, brightness: pixels.Brightness) -> Image.Image:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        shown = on_white(image, brightness)
        with lock:
            now[0] -= 1
        return shown

    monkeypatch.setattr(pixels, "on_white", counted)
    for limit, allowed in ((2 * each, 2), (each // 2, 1), (100 * each, 8)):
        monkeypatch.setattr(limits, "DECODING", Budget(limit))
        most[0] = 0
        _, bad = Reader([path] * 32, Preprocessing(32, 36)).all(8)
        assert bad == []
        assert most[0] <= allowed
        assert limits.DECODING.used == 0
    assert most[0] > 2


def test_what_an_image_that_cannot_be_decoded_took_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(100, 100).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(limits, "DECODING", Budget(1))
    assert isinstance(read(tmp_path / "a.png", content[: len(content) // 2]), BadImage)
    assert isinstance(read(tmp_path / "a.png", content), Tensor)
