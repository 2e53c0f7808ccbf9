"""Does the interval of `finetune curve` hold what twice the images really give?

    python scripts/check_curve.py [--fashion FOLDER] [--draws N] [--features FILE]

Of 6,000 images of Fashion-MNIST half is drawn, split 70/30, and the curve measured on it; then a head is
solved on twice as many of the 6,000, and measured on the same held-out images and on 6,000 others. Prints how
often the intervals of accuracy and of the gain hold the result. FILE: where features are kept between runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from redrawn import fashion_images
from rich.console import Console
from torch import Tensor

from finetune.build import find_data, make_model
from finetune.config.compose import compose
from finetune.data.dataset import Dataset
from finetune.evaluation.embeddings import embed
from finetune.evaluation.learning import measure_curve, solve_parts
from finetune.model.standardize import statistics
from finetune.training.losses import create_loss
from finetune.training.solve import STRENGTHS, Problem, follow_path

IMAGES, HALF, TRAIN = 6000, 3000, 2100
NEAR = STRENGTHS[6:10]  # 0.1 to 0.003; about 0.01 is best
LOSS = create_loss("cross_entropy")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--features", type=Path, default=Path("fashion.npz"))
    asked = parser.parse_args()
    if not asked.features.exists():
        compute(asked.fashion, asked.features)
    stored = np.load(asked.features)
    torch.set_num_threads(1)
    rows = [
        check(torch.from_numpy(stored["features"]), stored["labels"], draw) for draw in range(asked.draws)
    ]
    tell(rows)


def compute(source: Path, file: Path) -> None:
    """What the head of the bundled resnet18 reads of the first 12,000 images, at 32 px, in their order."""
    with TemporaryDirectory() as folder:
        fashion_images(source, Path(folder), 2 * IMAGES)
        settings = compose(["data=folder", f"data.root={folder}", "data.image_size=32", "weights=bundled"])
        dataset = find_data(settings)
        found = embed(make_model(settings, dataset), settings, dataset, Console())
        order = np.argsort([int(Path(str(image)).stem) for image in found.dataset.images])
        np.savez(file, features=found.values.numpy()[order], labels=found.dataset.labels[order])


def check(features: Tensor, labels: np.ndarray, draw: int) -> dict[str, float | bool]:
    """One draw of a half: what its curve expected, and what came true."""
    rows = np.random.default_rng(draw).permutation(IMAGES)
    train, held, more = np.split(rows[: HALF + TRAIN], [TRAIN, HALF])
    train, held = np.sort(train), np.sort(held)
    names = tuple(map(str, range(10)))
    every = [str(row) for row in range(len(labels))]
    dataset = Dataset("fashion", names, every, labels, split={}, digests=every)  # type: ignore[arg-type]
    right = solve_parts(features, dataset, train, held, console=Console(quiet=True))
    curve = measure_curve(right, labels[held], names)
    others = np.arange(IMAGES, 2 * IMAGES)
    twice = solved(features, labels, np.sort([*train, *more]), held, others)
    expected, now = curve["twice"], curve["points"][-1]["value"]
    came = f"{now:.3f} became {twice[0]:.3f} on the held-out images; {twice[1]:.3f} on others"
    print(f"{draw}: {curve['sentence']}; {came}", flush=True)
    return {
        "interval holds the accuracy on the held-out images": holds(expected, twice[0]),
        "interval holds the accuracy on 6,000 others": holds(expected, twice[1]),
        "interval of the gain holds it on the held-out images": holds(curve["gain"], twice[0] - now),
        "width of the interval": expected["high"] - expected["low"],
        "width of the interval of the gain": curve["gain"]["high"] - curve["gain"]["low"],
        "gain expected": curve["gain"]["value"],
        "gain on the held-out images": twice[0] - now,
    }


def solved(
    features: Tensor, labels: np.ndarray, train: np.ndarray, held: np.ndarray, others: np.ndarray
) -> tuple[float, float]:
    """The accuracies of a head solved on some images, on those that chose its strength and on others."""
    mean, scale = statistics([features[train]])
    values, truth = ((features - mean) * scale).float(), torch.from_numpy(labels)
    rows = np.concatenate([train, held])
    fold = (torch.arange(len(train)), torch.arange(len(train), len(rows)))
    path = follow_path(Problem(values[rows], truth[rows], LOSS, 10), [fold], LOSS, NEAR)
    best = min(path, key=lambda point: point.log_loss)
    answers = (values[others] @ best.weight.T + best.bias).argmax(1)
    return best.accuracy, float((answers == truth[others]).double().mean())


def holds(interval: dict[str, float], value: float) -> bool:
    return interval["low"] <= value <= interval["high"]


def tell(rows: list[dict[str, float | bool]]) -> None:
    for name in rows[0]:
        print(f"{name:<55} {np.mean([row[name] for row in rows]):.3f}")


if __name__ == "__main__":
    main()
