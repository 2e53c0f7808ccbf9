"""What the benchmarks run on: a data set cut from large photographs, and weights that all sides load."""

from __future__ import annotations

import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZE = (500, 375)


def cut_pictures(sources: list[Path], folder: Path, train: int, val: int, classes: int) -> None:
    """Cut pictures from large photographs: to train from the left part of each, to validate from the rest."""
    from PIL import Image

    found = [
        path
        for source in sources
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
    chance = random.Random(0)
    chance.shuffle(found)
    used = 0
    for path in found:
        with Image.open(path) as image:
            if image.width < 3 * SIZE[0] or image.height < 2 * SIZE[1]:
                continue
            photograph = image.convert("RGB")
        middle = photograph.width * train // (train + val)
        for side, count, left, right in (("train", train, 0, middle), ("val", val, middle, photograph.width)):
            target = folder / side / f"{used:02}"
            target.mkdir(parents=True)
            for i in range(count // classes):
                width = chance.randint(
                    SIZE[0] // 2, min(right - left, photograph.height * 4 // 3, 2 * SIZE[0])
                )
                height = width * 3 // 4
                x, y = chance.randint(left, right - width), chance.randint(0, photograph.height - height)
                part = photograph.crop((x, y, x + width, y + height)).resize(SIZE)
                part.save(target / f"{i:03}.jpg", quality=90)
        used += 1
        if used == classes:
            return
    sys.exit(
        f"--photographs: expected {classes} photographs of {3 * SIZE[0]} x {2 * SIZE[1]} pixels or more;"
        f" found {used}"
    )


def save_weights(target: Path) -> None:
    """The bundled weights as the plain state dict that both sides load."""
    import torch
    from safetensors.torch import load_file

    state = load_file(ROOT / "src/finetune/assets/resnet18-bundled.safetensors")
    torch.save(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}, target
    )
