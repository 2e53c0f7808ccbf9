"""fastai's vision_learner with its defaults, frozen or by its fine_tune, for the benchmarks; needs fastai.

    python scripts/fastai_learner.py FOLDER --weights FILE [--size 224] [--epochs 4 | --fine-tune 10]

FOLDER has train, valid and test. Prints the accuracy on test, and seconds, as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, vision_learner
from torchvision.models import resnet18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="a state dict of torchvision's resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--fine-tune", type=int, help="epochs in which all trains, after one of the head")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    torch.manual_seed(asked.seed)
    data = ImageDataLoaders.from_folder(
        asked.data,
        item_tfms=Resize(asked.size * 2),
        batch_tfms=aug_transforms(size=asked.size, min_scale=0.75),
        seed=asked.seed,
    )
    learner = vision_learner(data, resnet18, metrics=accuracy, pretrained=False)
    whole = torch.load(asked.weights, weights_only=True)
    body = list(resnet18().children())[:-2]  # as fastai cuts it
    names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    for place, (name, _) in enumerate(zip(names, body, strict=True)):
        own = {key.removeprefix(f"{name}."): v for key, v in whole.items() if key.startswith(f"{name}.")}
        learner.model[0][place].load_state_dict(own)
    learner.freeze()
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        if asked.fine_tune:
            learner.fine_tune(asked.fine_tune)
        else:
            learner.fit_one_cycle(asked.epochs)
        seconds = time.perf_counter() - started
        paths = sorted((asked.data / "test").rglob("*.*"))
        answers, _ = learner.get_preds(dl=data.test_dl(paths))
    right = [data.vocab[int(i)] == path.parent.name for i, path in zip(answers.argmax(1), paths, strict=True)]
    print(json.dumps({"accuracy": sum(right) / len(right), "seconds": seconds}))


if __name__ == "__main__":
    main()
