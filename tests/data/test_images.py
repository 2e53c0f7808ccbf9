"""Pictures as a person sees them, cut as torchvision cuts them; broken ones named with their reason."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw
from privilege import without_privilege
from torch import Tensor
from torchvision.transforms import v2

from finetune.data.dataset import Stored
from finetune.data.images import EXTENSIONS, BadImage, BrokenPicture, Reader, decode, on_white


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some edges, as JPEG likes them."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    pixels = np.stack([x, y, (x + y) / 2], axis=-1) * 255
    image = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width * 0.3, height * 0.3, width * 0.6, height * 0.7), fill=(200, 30, 90))
    return image


def seen(path: Path, size: int) -> np.ndarray:
    """(size, size, 3): a square picture of that size, decoded without resizing."""
    return decode(path, size, size, "bilinear").permute(1, 2, 0).numpy()


# Exact pixels


def test_rgb_arrives_as_it_is(tmp_path: Path) -> None:
    pixels = noise(32, 32)
    for name in ("a.png", "a.bmp", "a.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(seen(tmp_path / name, 32), pixels)


def test_lossless_webp_arrives_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(noise(32, 32)).save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(seen(tmp_path / "a.webp", 32), noise(32, 32))


def test_an_array_arrives_as_it_is() -> None:
    assert np.array_equal(decode(noise(8, 8), 8, 8, "bilinear").permute(1, 2, 0).numpy(), noise(8, 8))
    grey = noise(8, 8)[..., 0]
    assert (decode(grey, 8, 8, "bilinear").numpy() == grey).all()


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:4, :, 3] = 255
    rgba[4:, :, 3] = 51  # a fifth
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = seen(tmp_path / "a.png", 8)
    assert (pixels[:4] == (200, 0, 0)).all()
    assert (pixels[4:] == (244, 204, 204)).all()


def test_grey_with_transparency_lies_on_white(tmp_path: Path) -> None:
    la = np.full((8, 8, 2), (100, 0), np.uint8)
    la[0, 0] = (100, 255)
    Image.fromarray(la, "LA").save(tmp_path / "a.png")
    pixels = seen(tmp_path / "a.png", 8)
    assert pixels[0, 0].tolist() == [100, 100, 100]
    assert (pixels.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_a_palettes_transparency_lies_on_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 0])
    image.paste(1, (0, 4, 8, 8))
    image.save(tmp_path / "a.png", transparency=transparency)
    pixels = seen(tmp_path / "a.png", 8)
    assert (pixels[:4] == (10, 20, 30)).all()
    assert (pixels[4:] == 255).all()


def test_a_colour_key_lies_on_white(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), (1, 2, 3), np.uint8)
    pixels[0, 0] = (9, 9, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    found = seen(tmp_path / "a.png", 8)
    assert found[0, 0].tolist() == [9, 9, 9]
    assert (found.reshape(-1, 3)[1:] == 255).all()


def test_grey_is_grey(tmp_path: Path) -> None:
    grey = noise(16, 16)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert (seen(tmp_path / "a.png", 16) == grey[..., None]).all()


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    bits = noise(16, 16)[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert (seen(tmp_path / "a.png", 16) == bits[..., None] * 255).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(deep).save(tmp_path / name)
        assert (seen(tmp_path / name, 16) == np.arange(256).reshape(16, 16, 1)).all()


def test_floats_are_scaled_to_their_largest() -> None:
    image = Image.fromarray(np.array([[0, 0.25], [0.5, np.nan]], np.float32))
    assert np.asarray(on_white(image))[..., 0].tolist() == [[0, 128], [255, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cmyk = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # magenta and yellow: red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(seen(tmp_path / "a.jpg", 16).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_turn_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What the camera stored, so that the viewer's turn gives the upright picture; the numbers are EXIF's.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(seen(tmp_path / "a.png", 16), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", [b"garbage garbage", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\xff\xff\xff\xff"])
def test_a_damaged_exif_is_left_aside(tmp_path: Path, exif: bytes, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    photograph(32, 32).save(path, exif=b"Exif\0\0" + exif, lossless=True, quality=95)
    assert np.abs(seen(path, 32).astype(int) - np.asarray(photograph(32, 32))).mean() < 5


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert (seen(tmp_path / name, 8) == (255, 0, 0)).all()


def test_two_pictures_in_one_jpeg_show_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(seen(tmp_path / "a.jpg", 16).astype(int) - (250, 0, 0)).max() <= 3


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(seen(tmp_path / "a.jpg", 8), noise(8, 8))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_extension_that_is_offered_can_be_read(tmp_path: Path, extension: str) -> None:
    photograph(16, 16).save(tmp_path / f"a{extension}")
    assert (
        np.abs(seen(tmp_path / f"a{extension}", 16).astype(int) - np.asarray(photograph(16, 16))).mean() < 25
    )


# Geometry


def by_torchvision(image: Image.Image, resize: int, crop: int, interpolation: str) -> Tensor:
    mode = v2.InterpolationMode(interpolation)
    steps = [v2.Resize(resize, mode, antialias=True), v2.CenterCrop(crop), v2.PILToTensor()]
    return v2.Compose(steps)(image)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(90, 130), (130, 90), (100, 100), (91, 123), (37, 41), (20, 200), (200, 21), (64, 64), (65, 64), (2, 2)],
)
def test_the_cut_is_torchvisions(tmp_path: Path, height: int, width: int, interpolation: str) -> None:
    # Of middling values, so that bicubic's overshoot is never cut off: Pillow chooses which axis to do first.
    image = Image.fromarray(noise(height, width) // 4 + 96)
    image.save(tmp_path / "a.png")
    for resize, crop in ((36, 32), (64, 64), (73, 64)):
        ours = decode(tmp_path / "a.png", resize, crop, interpolation)
        theirs = by_torchvision(image, resize, crop, interpolation)
        assert ours.shape == (3, crop, crop)
        assert ours.dtype == torch.uint8
        assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [(600, 900), (900, 600), (1111, 777)])
def test_a_large_jpeg_decoded_at_a_part_of_its_size_looks_the_same(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    photograph(*size).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        theirs = by_torchvision(image.convert("RGB"), 73, 64, "bilinear")
    difference = (decode(tmp_path / "a.jpg", 73, 64, "bilinear").int() - theirs.int()).abs()
    assert difference.float().mean() < 1
    assert difference.max() <= 24  # at an edge


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_large_jpeg_of_any_kind_is_turned_upright(tmp_path: Path, mode: str) -> None:
    upright = photograph(640, 960).convert("L" if mode == "L" else "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).convert(mode).save(tmp_path / "a.jpg", quality=95, exif=exif)
    theirs = by_torchvision(upright.convert("RGB"), 73, 64, "bilinear")
    difference = (decode(tmp_path / "a.jpg", 73, 64, "bilinear").int() - theirs.int()).abs()
    assert difference.float().mean() < 1


@pytest.mark.parametrize("size", [(2, 2), (2, 2000), (2000, 2), (2, 20000)])
def test_the_thinnest_pictures_have_a_middle(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    decoded = decode(tmp_path / "a.png", 256, 224, "bilinear")
    assert decoded.shape == (3, 224, 224)
    assert (decoded.permute(1, 2, 0).numpy() == (10, 200, 30)).all()


def test_a_colour_profile_is_undone(tmp_path: Path) -> None:
    """Display P3's full red lies outside sRGB; its half green is a stronger one there."""
    profile = display_p3()
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4], pixels[4:] = (255, 0, 0), (100, 150, 100)
    for name in ("a.png", "b.tiff", "c.webp"):
        Image.fromarray(pixels).save(tmp_path / name, icc_profile=profile, lossless=True)
        found = seen(tmp_path / name, 8).astype(int)
        assert np.abs(found[0, 0] - (255, 0, 0)).max() <= 3
        assert np.abs(found[7, 7] - (80, 151, 92)).max() <= 6


def test_transparency_stays_under_a_profile(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (100, 150, 100, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=display_p3())
    found = seen(tmp_path / "a.png", 8).astype(int)
    assert np.abs(found[0, 0] - (80, 151, 92)).max() <= 6
    assert (found[4:] == 255).all()


def test_srgbs_own_profile_and_a_damaged_one_change_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", display_p3()[:100]):
        Image.fromarray(noise(8, 8)).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(seen(tmp_path / "a.png", 8), noise(8, 8))


def test_a_profile_of_another_kind_of_picture_is_left_aside(tmp_path: Path) -> None:
    grey = noise(8, 8)[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=display_p3())
    assert (seen(tmp_path / "a.png", 8) == grey[..., None]).all()


def display_p3() -> bytes:
    """An ICC profile, version 2, of Display P3's primaries (D50-adapted) and a gamma of 2.2."""

    def xyz(*values: float) -> bytes:
        return (
            b"XYZ " + bytes(4) + b"".join(round(value * 65536).to_bytes(4, signed=True) for value in values)
        )

    text = b"Display P3\0"
    tags = {
        b"desc": b"desc" + bytes(4) + len(text).to_bytes(4) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        **{
            name: b"curv" + bytes(4) + (1).to_bytes(4) + (563).to_bytes(2)
            for name in (b"rTRC", b"gTRC", b"bTRC")
        },
    }
    table, data = len(tags).to_bytes(4), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + (132 + 12 * len(tags) + len(data)).to_bytes(4) + len(content).to_bytes(4)
        data += content
    size = 132 + 12 * len(tags) + len(data)
    header = size.to_bytes(4) + bytes(4) + bytes([2, 0x40, 0, 0]) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    return header + table + data


# What is broken


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


def test_what_is_known_to_be_bad_is_not_tried_again(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    known = BadImage(0, "a", "seen before")
    assert Reader([tmp_path / "a.png"], 8, 8, "bilinear", {0: known})(0) == known


def test_a_picture_inside_something_larger_is_decoded_like_a_file(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    whole, cut = Stored("archive/a.png", lambda: content), Stored("archive/b.png", lambda: content[:60])
    assert np.array_equal(decode(whole, 8, 8, "bilinear").permute(1, 2, 0).numpy(), noise(8, 8))
    found = Reader([cut], 8, 8, "bilinear")(0)
    assert isinstance(found, BadImage)
    assert found.path == "archive/b.png"


def whole_files(folder: Path) -> list[Path]:
    paths = [folder / f"whole{extension}" for extension in EXTENSIONS]
    for path in paths:
        photograph(40, 60).save(path)
    return paths


def bad(path: Path) -> BadImage:
    found = Reader([path], 36, 32, "bilinear")(0)
    assert isinstance(found, BadImage)
    return found


def test_empty_and_foreign_files_are_named_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("this is no picture")
    for name in ("empty.png", "text.jpg"):
        path = str(tmp_path / name)
        assert bad(tmp_path / name) == BadImage(0, path, "not a picture, or of an unknown format")


def test_a_format_that_is_not_offered_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="PPM")
    assert bad(tmp_path / "a.png").reason == "not a picture, or of an unknown format"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert bad(tmp_path / "gone.png").reason == "no such file or directory"
    (tmp_path / "folder.png").mkdir()
    assert bad(tmp_path / "folder.png").reason == "is a directory"


def test_a_truncated_file_is_broken_or_shows_all_that_matters(tmp_path: Path) -> None:
    for path in whole_files(tmp_path):
        content = path.read_bytes()
        whole = decode(path, 36, 32, "bilinear")
        for length in range(1, len(content), max(1, len(content) // 25)):
            path.write_bytes(content[:length])
            found = Reader([path], 36, 32, "bilinear")(0)
            if isinstance(found, BadImage):
                assert found.path == str(path)
                assert found.reason
            else:  # a trailer is missing, no pixels
                assert torch.equal(found, whole), (path.suffix, length)


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
            outcomes[type(Reader([path], 36, 32, "bilinear")(0))] += 1
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
    limit = Image.MAX_IMAGE_PIXELS
    assert limit is not None
    assert size[0] * size[1] > limit
    (tmp_path / "a.png").write_bytes(png_of_size(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bad(tmp_path / "a.png").reason == "more pixels than is safe to decode"
    assert limit == Image.MAX_IMAGE_PIXELS


def test_decode_raises_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BrokenPicture, match=r"^not a picture, or of an unknown format$"):
        decode(tmp_path / "a.png", 36, 32, "bilinear")


@pytest.mark.parametrize("workers", [1, 3, "auto"])
def test_all_pictures_in_order_with_the_bad_ones_named(tmp_path: Path, workers: int | str) -> None:
    pictures: list[Path | np.ndarray] = [noise(32, 32, seed) for seed in range(40)]
    for index in (7, 23):
        pictures[index] = tmp_path / f"{index}.png"
    Image.fromarray(noise(32, 32, 23)).save(tmp_path / "23.png")
    done: list[int] = []
    pixels, broken = Reader(pictures, 32, 32, "bilinear").all(workers, done.append)
    assert [(one.index, one.path) for one in broken] == [(7, str(tmp_path / "7.png"))]
    assert sum(done) == 40
    for index in set(range(40)) - {7}:
        assert np.array_equal(pixels[index].permute(1, 2, 0).numpy(), noise(32, 32, index))
    assert not pixels[7].any()


def test_a_name_longer_than_there_can_be_is_a_bad_picture(tmp_path: Path) -> None:
    with pytest.raises(BrokenPicture, match="file name too long"):
        decode(tmp_path / ("x" * 300), 8, 8, "bilinear")
