"""How often 95 % intervals hold what they should: test sets drawn from a run's answers to many images.

Fashion-MNIST's 10,000 test images are answered by a head solved on the pixels of 300 others; they are the
population. 200 sets of images are drawn from it, and the intervals of each are held against what all give.

    python scripts/check_intervals.py /usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from finetune.training.metrics import measure_classes
from finetune.training.several import measure_labels

SETS = 200
SIZES = (50, 200, 1000)
MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error", "map")


def answers(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (10000, 10) for the test images, and their classes."""
    parts = {}
    for side in ("train", "t10k"):
        pixels = gzip.decompress((folder / f"{side}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((folder / f"{side}-labels-idx1-ubyte.gz").read_bytes())[8:]
        parts[side] = np.frombuffer(pixels, np.uint8).reshape(-1, 784) / 255, np.frombuffer(labels, np.uint8)
    images, labels = parts["train"]
    head = LogisticRegression(C=0.1, max_iter=300).fit(images[:300], labels[:300])
    images, labels = parts["t10k"]
    return torch.from_numpy(head.decision_function(images)), torch.from_numpy(labels.astype(np.int64))


def main() -> None:
    logits, labels = answers(Path(sys.argv[1]))
    names, random = [*"0123456789"], np.random.default_rng(1)
    several = torch.nn.functional.one_hot(labels).float()
    scores = logits - 2  # each class as a label of its own
    whole = measure_labels(scores, several, names, None) | measure_classes(logits, labels, names)
    print(f"of all {len(labels):,} images: " + ", ".join(f"{name} {whole[name]:.3f}" for name in MEASURES))
    for size in SIZES:
        held: dict[str, int] = dict.fromkeys(MEASURES, 0)
        widths: dict[str, float] = dict.fromkeys(MEASURES, 0.0)
        started = time.perf_counter()
        for _ in range(SETS):
            rows = torch.from_numpy(random.choice(len(labels), size, replace=False))
            found = measure_labels(scores[rows], several[rows], names, None)["intervals"]
            found |= measure_classes(logits[rows], labels[rows], names)["intervals"]
            for name in MEASURES:
                low, high = found[name]
                held[name] += low <= whole[name] <= high
                widths[name] += (high - low) / SETS
        milliseconds = 1000 * (time.perf_counter() - started) / SETS
        told = (f"{name} {held[name] / SETS:.1%} (width {widths[name]:.3f})" for name in MEASURES)
        print(f"{size:>5} images: {', '.join(told)}; {milliseconds:.0f} ms a set")


if __name__ == "__main__":
    main()
