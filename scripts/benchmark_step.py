"""A step of training with nothing frozen, beside a plain loop over timm's model, in turns; needs timm.

    python scripts/benchmark_step.py [--model resnet18] [--size 128] [--batch 32] [--precision 32] [--turns 5]

Both compute in the same precision and channels last, with SGD. The plain loop trains on one batch that lies
ready, so that decoding is in neither; ours reads its decoded images, augments none, logs, and watches what is
frozen. Prints images a second of each turn, and the ratio of the medians, as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from gpu_speed import our_loop, photographs, plain_loop

IMAGES, SECONDS = 1000, 15


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="one of timm's")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    same = (asked.model, asked.size, asked.batch, asked.precision)
    ours: list[float] = []
    plain: list[float] = []
    with TemporaryDirectory() as name:
        root = photographs(Path(name) / "images", IMAGES)
        for _ in range(asked.turns):
            ours.append(our_loop(root, *same))
            plain.append(plain_loop(*same, SECONDS))
    print(json.dumps({"ours": ours, "plain loop": plain, "ratio": median(ours) / median(plain)}))


if __name__ == "__main__":
    main()
