"""The pictures of a run."""

import io

import numpy as np
import torch

from finetune.report.figures import confusion_figure, picture_grid
from finetune.training.metrics import confusion_matrix


def test_answers_beside_the_classes_have_a_column_of_their_own() -> None:
    labels, answers = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 4, 3, 1])
    matrix = confusion_matrix(labels, answers, 2, 5)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 1]]
    axes = confusion_figure(matrix, ["cat", "dog"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "other"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_confusion_figure_shows_each_count_in_its_cell() -> None:
    axes = confusion_figure(np.array([[3, 1], [0, 7]]), ["cat", "dog"]).axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "3",
        (1, 0): "1",
        (1, 1): "7",
    }
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])


def test_a_dollar_in_a_name_is_no_formula() -> None:
    confusion_figure(np.eye(2), ["$a^{", r"$\\frac$"]).savefig(io.BytesIO())


def test_the_grid_undoes_the_normalisation() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    original = torch.rand(10, 3, 8, 8)
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    grid = picture_grid((original - shift) / scale, mean, std)
    assert grid.shape == (3, 2 * 10 + 2, 8 * 10 + 2)  # two rows of eight, a margin of two pixels
    torch.testing.assert_close(grid[:, 2:10, 2:10], original[0])
    torch.testing.assert_close(grid[:, 12:20, 12:20], original[9])


def test_large_pictures_are_shown_smaller() -> None:
    grid = picture_grid(torch.zeros(16, 3, 224, 224), (0.5,) * 3, (0.5,) * 3)
    assert grid.shape == (3, 2 * 130 + 2, 8 * 130 + 2)
    torch.testing.assert_close(grid[:, 2:130, 2:130], torch.full((3, 128, 128), 0.5))
