"""timm's train.py at its defaults, from pretrained weights, for scripts/benchmark_finetune.py; needs timm.

    python scripts/timm_recipe.py FOLDER --weights FILE [--model resnet18] [--size 224] [--epochs 20]

What its train.py does by default: random resized crops, flips and colour jitter of 0.4, label smoothing of
0.1, SGD with Nesterov's momentum of 0.9, weight decay of 2e-5, a rate of 0.1 for 256 images, warm-up and a
cosine, and the epoch with the best top 1. Warm-up is 2 of 20 epochs, as its 5 are made for 300. FOLDER has
train, val and test. Prints the accuracy on test, and seconds, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

BATCH, WARMUP, WORKERS = 32, 2, 2


def loaders(folder: Path, model: nn.Module, size: int) -> dict[str, Any]:
    """Batches of each split, augmented to train, as timm's create_transform does it by default."""
    known = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=model)
    pixels = {key: known[key] for key in ("input_size", "interpolation", "mean", "std")}
    found = {}
    for split in ("train", "val", "test"):
        training = split == "train"
        own = {"color_jitter": 0.4} if training else {"crop_pct": known["crop_pct"]}
        images = ImageFolder(folder / split, create_transform(**pixels, is_training=training, **own))
        found[split] = DataLoader(
            images, BATCH, shuffle=training, drop_last=training, num_workers=WORKERS, persistent_workers=True
        )
    return found


@torch.no_grad()
def accuracy(model: nn.Module, batches: Any) -> float:
    model.eval()
    right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="its state dict")
    parser.add_argument("--model", default="resnet18", help="a model of timm's")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    torch.manual_seed(asked.seed)
    model: Any = timm.create_model(asked.model)
    model.load_state_dict(torch.load(asked.weights, weights_only=True))
    batches = loaders(asked.data, model, asked.size)
    model.reset_classifier(len(batches["train"].dataset.classes))
    loss = LabelSmoothingCrossEntropy(0.1)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.1 * BATCH / 256, weight_decay=2e-5, momentum=0.9)
    schedule, _ = create_scheduler_v2(
        optimizer, "cosine", num_epochs=asked.epochs, warmup_epochs=WARMUP, warmup_lr=1e-5
    )
    started, best, found = time.perf_counter(), -1.0, 0.0
    for epoch in range(asked.epochs):
        model.train()
        schedule.step(epoch)
        for images, labels in batches["train"]:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
        val = accuracy(model, batches["val"])
        if val > best:
            best, found = val, accuracy(model, batches["test"])
    print(json.dumps({"accuracy": found, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
