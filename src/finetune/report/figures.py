"""Pictures of a run: the confusion matrix and what the model sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix as a figure; shares of each true class as colour, counts as text."""
    size = min(max(4.0, 0.5 * len(classes) + 2), 14)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 40:
        columns = [*classes, "other"][: matrix.shape[1]]
        axes.set_xticks(
            range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", parse_math=False
        )
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=color)
    return figure


def picture_grid(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised inputs (B, 3, H, W) as one picture in [0, 1], eight in a row, 128 px each at most."""
    pictures = inputs.cpu().float() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    if inputs.shape[-1] > 128:
        pictures = F.interpolate(pictures, (128, 128), mode="bilinear", antialias=True)
    return make_grid(pictures.clamp(0, 1), nrow=8, padding=2, pad_value=1.0)
