"""Plant faults in a copy of the clip art and count what `finetune audit` finds of them.

python scripts/check_audit.py [SEED…]; with cleanlab installed, too, its ranking on the same probabilities.
"""

from __future__ import annotations

import csv
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

import finetune

CLIPART = Path(finetune.__file__).parent / "assets" / "clipart"


@dataclass
class Planted:
    """Files by what is wrong with them; of copies with the file that each is of."""

    labels: list[str] = field(default_factory=list)
    exact: dict[str, str] = field(default_factory=dict)
    near: dict[str, str] = field(default_factory=dict)
    leaks: dict[str, str] = field(default_factory=dict)


def plant(folder: Path, seed: int) -> Planted:
    """Copy the clip art to folders of its sides, with 20 wrong labels and 40 copies."""
    chance, planted = random.Random(seed), Planted()
    with (CLIPART / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [(Path(row["file"]), row["class"], row["split"]) for row in csv.DictReader(file)]
    classes = sorted({label for _, label, _ in rows})
    for _, label, side in rows:
        (folder / side / label).mkdir(parents=True, exist_ok=True)
    chance.shuffle(rows)
    train = [row for row in rows if row[2] == "train"]
    wrong, copied = train[:20], train[20:60]
    for file, label, side in rows:
        if (file, label, side) in wrong:
            label = chance.choice([other for other in classes if other != label])
            planted.labels.append(str(folder / side / label / file.name))
        shutil.copy(CLIPART / file, folder / side / label / file.name)
    for number, (file, label, side) in enumerate(copied):
        kind = "exact" if number < 15 else "near" if number < 30 else "leaks"
        place = folder / ("test" if kind == "leaks" else side) / label
        if kind == "exact" or (kind == "leaks" and number % 2):
            copy = place / f"copy {file.name}"
            shutil.copy(CLIPART / file, copy)
        else:
            copy = again(CLIPART / file, place, number % 3)
        getattr(planted, kind)[str(copy)] = str(folder / side / label / file.name)
    return planted


def again(file: Path, place: Path, how: int) -> Path:
    """Save an image anew: as a JPEG of quality 80, at 90 % of its size, or both."""
    image = Image.open(file).convert("RGB")
    if how:
        image = image.resize([round(0.9 * side) for side in image.size])
    copy = place / f"again {file.stem}{'.png' if how == 1 else '.jpg'}"
    image.save(copy, quality=80)
    return copy
