"""The loop of PyTorch's transfer-learning tutorial, as plain as it stands there, for scripts/benchmark.py.

ImageFolder, random resized crop and flip to train, Resize and CenterCrop to validate, a DataLoader with a
worker per core, SGD 0.01 with momentum 0.9, StepLR, batches of 64, all in train mode in each epoch.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn, optim
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def build(name: str) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """A model of torchvision or timm, and the mean and deviation of pixels that its weights know."""
    if not name.startswith("timm/"):
        return models.get_model(name), MEAN, STD
    import timm

    model = timm.create_model(name.removeprefix("timm/"))
    return model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]


def freeze(model: nn.Module, what: str) -> None:
    """Freeze `all`, `none` or, of a resnet, `through:<stage>`."""
    if what in ("all", "none"):
        model.requires_grad_(what == "none")
        return
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    for stage in stages[: stages.index(what.removeprefix("through:")) + 1]:
        model.get_submodule(stage).requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with train and val, each with a folder per class")
    parser.add_argument("--model", default="resnet18", help="a model of torchvision's, or timm/NAME")
    parser.add_argument("--weights", type=Path, required=True, help="its state dict")
    parser.add_argument("--freeze", default="all")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--no-augment", action="store_true")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model, mean, std = build(arguments.model)
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    size = arguments.size
    cropped = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    augmented = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    sides = [side for side in ("train", "val", "test") if (arguments.data / side).is_dir()]
    pictures = {
        side: datasets.ImageFolder(
            arguments.data / side,
            transforms.Compose(
                [*(augmented if side == "train" and not arguments.no_augment else cropped), *tensor]
            ),
        )
        for side in sides
    }
    loaders = {
        side: torch.utils.data.DataLoader(
            pictures[side], batch_size=64, shuffle=side == "train", num_workers=os.cpu_count() or 1
        )
        for side in pictures
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    freeze(model, arguments.freeze)
    head = "fc" if hasattr(model, "fc") else "classifier"
    setattr(model, head, nn.Linear(getattr(model, head).in_features, len(pictures["train"].classes)))
    model = model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    seconds: list[float] = []
    accuracies: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(arguments.epochs):
        started = time.perf_counter()
        for side in sides:
            model.train(side == "train")
            right = 0
            for inputs, labels in loaders[side]:
                inputs, labels = inputs.to(device), labels.to(device)
                optimizer.zero_grad()
                with torch.set_grad_enabled(side == "train"):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if side == "train":
                        loss.backward()
                        optimizer.step()
                right += int((outputs.argmax(1) == labels).sum())
            accuracies[side].append(right / len(pictures[side]))
        scheduler.step()
        seconds.append(time.perf_counter() - started)
    counted = sum(map(len, pictures.values()))
    told = {"accuracies": accuracies["val"], "epoch_seconds": seconds, "pictures": counted}
    if "test" in sides:
        best = max(range(len(seconds)), key=accuracies["val"].__getitem__)
        told |= {"accuracy": accuracies["test"][best], "seconds": sum(seconds)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
