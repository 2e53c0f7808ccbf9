"""The images that TensorBoard shows, looked at pixel by pixel."""

from pathlib import Path

import numpy as np
import torch

from finetune.data.dataset import RawImage
from finetune.model.preprocessing import Preprocessing
from finetune.report.drawings import confusion_image, image_grid, thumbnails
from finetune.training.metrics import confusion_matrix


def test_answers_beside_the_classes_have_a_column_of_their_own() -> None:
    labels, answers = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 4, 3, 1])
    matrix = confusion_matrix(labels, answers, 2, 5)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 1]]
    height, width, _ = confusion_image(matrix, ["cat", "dog"]).shape
    assert width - height == 80


def test_the_confusion_matrix_has_a_darker_cell_for_a_larger_share() -> None:
    image = confusion_image(np.array([[3, 1], [0, 7]]), ["cat", "dog \N{CJK UNIFIED IDEOGRAPH-65E5}"])
    cells = image[-240:, -240:].astype(int).sum(2)
    (often, seldom), (never, always) = (cells[2, [2, 122]], cells[122, [2, 122]])
    assert always < often < seldom < never == 3 * 255
    assert len(np.unique(cells[120:, :120])) == 1  # no count where there is none
    assert len(np.unique(cells[:120, 120:])) > 5


def test_a_thousand_classes_are_a_point_each() -> None:
    image = confusion_image(np.eye(1000, dtype=int), [str(one) for one in range(1000)])
    assert image.shape == (1000, 1000, 3)
    assert image[0, 0].max() < image[0, 1].min()


def test_the_grid_undoes_the_normalisation() -> None:
    how, original = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)), torch.rand(10, 3, 8, 8)
    grid = image_grid(how.undo(how.normalise(original * 255)), ["a"] * 10)
    assert grid.shape == (3 * 150, 4 * 132, 3)
    mean_of = torch.tensor([grid[300 : 300 + 128, 132 : 132 + 128, one].mean() for one in range(3)])
    torch.testing.assert_close(mean_of / 255, original[9].mean((1, 2)).double(), atol=0.02, rtol=0)


def test_large_images_are_shown_smaller() -> None:
    grid = image_grid(torch.full((16, 3, 224, 224), 0.5), ["x" * 90] * 16)
    assert grid.shape == (4 * 150, 4 * 132, 3)
    assert (grid[:128, :128] == 127).all()
    assert (grid[128:150, :132] < 100).any()


def test_what_takes_too_long_or_is_broken_has_a_grey_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    black = np.zeros((20, 30, 3), dtype=np.uint8)
    images: list[RawImage] = [black, tmp_path / "broken.png", black]
    found = thumbnails(images, Preprocessing(), size=8)
    assert found.shape == (3, 3, 8, 8)
    assert found.flatten(1).unique(dim=1).tolist() == [[0], [221], [0]]
    assert thumbnails(images, Preprocessing(), size=8, seconds=0).unique().tolist() == [221]
