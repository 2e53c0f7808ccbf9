"""Augmentation shows parts of the image and no more, decided by the seed and the batch's number alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.choices.augmentations import random_resized_crop
from finetune.data.augment import Prepare
from finetune.data.images import center_crop
from finetune.model.preprocessing import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count: int = 16, size: int = 40) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def prepare(augment: str, seed: int = 0) -> Prepare:
    return Prepare(Preprocessing(32, 40, MEAN, STD), augment, seed)


def test_normalisation_is_exact() -> None:
    batch = images(size=32)
    inputs = prepare("none")(batch, True, 1)
    expected = (batch.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(
        STD
    ).double().view(3, 1, 1)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert (inputs - expected).abs().max() < 1e-6


def test_the_pictures_stay_as_they_were() -> None:
    for batch in (images(size=32), images(size=32).float()):
        before = batch.clone()
        prepare("none")(batch, False, 0)
        prepare("standard")(batch, True, 1)
        assert torch.equal(batch, before)


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("training", [True, False])
def test_without_random_crops_the_middle_is_shown(augment: str, training: bool) -> None:
    batch = images(size=41)
    inputs = prepare(augment)(batch, training, 3)
    assert torch.equal(inputs, prepare(augment).normalise(batch[..., 4:36, 4:36]))


def test_evaluation_is_never_augmented() -> None:
    batch = images()
    assert torch.equal(prepare("standard")(batch, False, 5), prepare("none")(batch, False, 7))


def test_the_draw_depends_on_seed_and_number_alone() -> None:
    batch = images()
    once = prepare("standard", 3)(batch, True, 11)
    torch.manual_seed(99)  # what is drawn elsewhere does not matter
    assert torch.equal(prepare("standard", 3)(batch, True, 11), once)
    assert not torch.equal(prepare("standard", 3)(batch, True, 12), once)
    assert not torch.equal(prepare("standard", 4)(batch, True, 11), once)


def test_the_draw_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prepare("standard")(images(), True, 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_crop_is_a_part_of_the_picture() -> None:
    # Each pixel's value is its column, or its row: a crop shows a run of them, within the image.
    size, count = 64, 300
    columns = torch.arange(size).expand(size, size)
    batch = torch.stack([columns, columns.T, columns * 0]).to(torch.uint8).expand(count, 3, size, size)
    crops = random_resized_crop(batch, 32, torch.Generator().manual_seed(0))
    assert crops.dtype == torch.uint8
    assert crops.shape == (count, 3, 32, 32)
    crops = crops.float()
    assert crops.min() >= 0
    assert crops.max() <= size - 1
    assert not crops[:, 2].any()
    assert torch.equal(crops[:, 0], crops[:, 0, :1].expand(-1, 32, -1))  # columns stay columns
    assert torch.equal(crops[:, 1], crops[:, 1, :, :1].expand(-1, -1, 32))
    width = (crops[:, 0, 0, -1] - crops[:, 0, 0, 0]) / 31 * 32 / size  # as shares of the side
    height = (crops[:, 1, -1, 0] - crops[:, 1, 0, 0]) / 31 * 32 / size
    area, aspect = width * height, width / height
    assert 0.04 < area.min() < 0.2  # 0.08 but for whole pixels
    assert 0.8 < area.max() < 1.1
    assert abs(area.mean() - 0.53) < 0.06
    assert 0.6 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.6
    left = crops[:, 0, 0, 0] / size
    assert left.min() < 0.05
    assert left.max() > 0.4


def test_a_crop_of_one_colour_is_of_that_colour() -> None:
    batch = torch.full((4, 3, 40, 40), 77, dtype=torch.uint8)
    assert (random_resized_crop(batch, 32, torch.Generator()) == 77).all()


def test_about_half_is_mirrored() -> None:
    # Brightness grows to the right in each image, so in a mirrored crop it falls.
    ramp = torch.arange(0, 160, 4).to(torch.uint8).expand(400, 3, 40, 40)
    inputs = prepare("standard")(ramp, True, 1)
    mirrored = inputs[:, 0, :, -1].mean(1) < inputs[:, 0, :, 0].mean(1)
    assert 150 < int(mirrored.sum()) < 250


def test_the_middle_is_the_middle() -> None:
    batch = torch.arange(25).view(1, 1, 5, 5)
    assert center_crop(batch, 3).flatten().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert torch.equal(center_crop(batch, 5), batch)


@pytest.mark.parametrize("augment", ["trivial", "rand"])
def test_colours_and_shapes_change_by_seed_and_number_alone(augment: str) -> None:
    batch = images()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    once, again = (prepare(augment)(batch, True, 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once, again)
    assert once.shape == (16, 3, 32, 32)
    assert not torch.equal(once, prepare(augment)(batch, True, 4))
    assert not torch.equal(once, prepare("standard")(batch, True, 3))
    assert torch.equal(prepare(augment)(batch, False, 3), prepare("none")(batch, False, 3))
