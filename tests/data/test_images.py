"""Images as a person sees them, cut as torchvision cuts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torchvision.transforms import v2

from finetune.data.images import EXTENSIONS, BrokenImage, center_crop, decode
from finetune.data.pixels import on_white
from finetune.data.reader import Reader
from finetune.model.preprocessing import FITS, Preprocessing
from support.painted import display_p3, noise, photograph, save_as, seen

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
    assert np.array_equal(decode(noise(8, 8), Preprocessing(8, 8)).permute(1, 2, 0).numpy(), noise(8, 8))
    grey = noise(8, 8)[..., 0]
    assert (decode(grey, Preprocessing(8, 8)).numpy() == grey).all()


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
    assert np.asarray(on_white(image, {}))[..., 0].tolist() == [[0, 128], [255, 0]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cmyk = np.full((16, 16, 4), (0, 255, 255, 0), np.uint8)  # magenta and yellow: red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(seen(tmp_path / "a.jpg", 16).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_turn_is_undone(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What the camera stored, so that the viewer's turn gives the upright image; the numbers are EXIF's.
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
    image = photograph(16, 16)
    save_as(image, tmp_path / f"a{extension}")
    image = image.convert("L" if extension == ".pfm" else "RGB").convert("RGB")
    assert np.abs(seen(tmp_path / f"a{extension}", 16).astype(int) - np.asarray(image)).mean() < 25


# Geometry


def by_torchvision(image: Image.Image, resize: int, crop: int, interpolation: str) -> Tensor:
    mode = v2.InterpolationMode(interpolation)
    steps = [v2.Resize(resize, mode, antialias=True), v2.CenterCrop(crop), v2.PILToTensor()]
    return v2.Compose(steps)(image)


def test_only_what_training_crops_keeps_its_margin() -> None:
    images, sizes = [noise(50, 41), noise(40, 61), noise(8, 8)], Preprocessing(32, 37)
    pixels, bad = Reader(images, sizes, uncropped=frozenset([1])).all(1)
    assert pixels.shape == (3, 3, 37, 37)
    assert not bad
    assert torch.equal(pixels[1], decode(images[1], Preprocessing(37, 37)))
    for index in (0, 2):
        assert torch.equal(center_crop(pixels[index], 32), decode(images[index], sizes))


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
        ours = decode(tmp_path / "a.png", Preprocessing(crop, resize, interpolation=interpolation))
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
    difference = (decode(tmp_path / "a.jpg", Preprocessing(64, 73)).int() - theirs.int()).abs()
    assert difference.float().mean() < 1
    assert difference.max() <= 24  # at an edge


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_large_jpeg_of_any_kind_is_turned_upright(tmp_path: Path, mode: str) -> None:
    upright = photograph(640, 960).convert("L" if mode == "L" else "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90, expand=True).convert(mode).save(tmp_path / "a.jpg", quality=95, exif=exif)
    theirs = by_torchvision(upright.convert("RGB"), 73, 64, "bilinear")
    difference = (decode(tmp_path / "a.jpg", Preprocessing(64, 73)).int() - theirs.int()).abs()
    assert difference.float().mean() < 1


@pytest.mark.parametrize("across", [True, False], ids=["wide", "tall"])
def test_all_of_an_image_is_shown_where_that_is_asked_for(tmp_path: Path, across: bool) -> None:
    """Twice as long as wide: one colour at either end, which the central square would not show."""
    ends = np.zeros((20, 40, 3), np.uint8)
    ends[:, :10], ends[:, 10:30], ends[:, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(ends if across else ends.transpose(1, 0, 2)).save(tmp_path / "a.png")
    how = Preprocessing(40, 46, mean=(0.5, 0.4, 0.3))
    seen = {fit: decode(tmp_path / "a.png", replace(how, fit=fit)).permute(1, 2, 0) for fit in FITS}
    seen = {fit: one if across else one.transpose(0, 1) for fit, one in seen.items()}
    assert {tuple(one) for one in seen["center"].reshape(-1, 3).tolist()} == {(0, 255, 0)}
    for fit, rows in (("squash", slice(0, 40)), ("pad", slice(10, 30))):
        assert (seen[fit][rows, :9] == torch.tensor([255, 0, 0])).all()
        assert (seen[fit][rows, -9:] == torch.tensor([0, 0, 255])).all()
    assert (torch.cat([seen["pad"][:9], seen["pad"][31:]]) == torch.tensor([128, 102, 76])).all()


@pytest.mark.parametrize("size", [(2, 2), (2, 2000), (2000, 2), (2, 20000)])
def test_the_thinnest_pictures_have_a_middle(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    decoded = decode(tmp_path / "a.png", Preprocessing(224, 256))
    assert decoded.shape == (3, 224, 224)
    assert (decoded.permute(1, 2, 0).numpy() == (10, 200, 30)).all()
    padded = decode(tmp_path / "a.png", Preprocessing(224, 256, fit="pad")).permute(1, 2, 0).numpy()
    assert (padded == (10, 200, 30)).all(2).sum() == 224 * max(1, round(224 * min(size) / max(size)))


@pytest.mark.parametrize("name", [b"Display P3", b"sRGB wider"])
def test_a_colour_profile_is_undone_whatever_its_name(tmp_path: Path, name: bytes) -> None:
    """Display P3's full red lies outside sRGB; its half green is a stronger one there."""
    profile = display_p3().replace(b"Display P3", name)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4], pixels[4:] = (255, 0, 0), (100, 150, 100)
    for file in ("a.png", "b.tiff", "c.webp"):
        Image.fromarray(pixels).save(tmp_path / file, icc_profile=profile, lossless=True)
        found = seen(tmp_path / file, 8).astype(int)
        assert np.abs(found[0, 0] - (255, 0, 0)).max() <= 3
        assert np.abs(found[7, 7] - (80, 151, 92)).max() <= 6


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_undone_with_transparency_and_without(tmp_path: Path, mode: str) -> None:
    linear = display_p3().replace(b"mntrRGB ", b"mntrGRAY").replace(b"rTRC", b"kTRC")
    linear = linear.replace((1).to_bytes(4) + (563).to_bytes(2), (1).to_bytes(4) + (256).to_bytes(2))
    Image.new(mode, (8, 8), 100 if mode == "L" else (100, 255)).save(tmp_path / "a.png", icc_profile=linear)
    assert np.abs(seen(tmp_path / "a.png", 8).astype(int) - 168).max() <= 1


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


def test_grey_of_sixteen_bits_in_which_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    Image.fromarray(65535 - ramp).save(tmp_path / "b.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "b.tif") as stored:
        assert stored.mode == "I;16"
        assert stored.tag_v2[262] == 0
    shown = [decode(tmp_path / name, Preprocessing(8, 8)) for name in ("a.tif", "b.tif")]
    assert (shown[0].int() - shown[1].int()).abs().max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_of_which_none_is_finite_are_no_image(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((8, 8), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImage, match="no finite pixel"):
        decode(tmp_path / "a.tif", Preprocessing(8, 8))
