"""Plant faults in a copy of the clip art and count what `finetune audit` finds of them.

    python scripts/check_audit.py [SEED…]

With cleanlab installed its ranking of the same probabilities is counted, too.
"""

from __future__ import annotations

import csv
import importlib.util
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

import finetune
from finetune.data.dataset import Dataset
from finetune.evaluation import findings
from finetune.evaluation.audit import audit_images

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


def audited(root: Path, out: Path) -> list[dict[str, str]]:
    """The rows of audit.csv for a folder."""
    started = time.perf_counter()
    audit_images(["data=folder", f"data.root={root}", "weights=bundled"], out, None, "exact,leaks")
    print(f"{time.perf_counter() - started:.1f} s")
    with (out / "audit.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pairs(rows: list[dict[str, str]], *kinds: str, drawings: bool = False) -> set[frozenset[str]]:
    """The pairs of files that findings of some kinds are of; drawings: by the names of what was copied."""
    found = set()
    for row in rows:
        files = [row["path"], row["other path"]]
        if drawings:
            files = [Path(file).stem.removeprefix("again ").removeprefix("copy ") for file in files]
        if row["finding"] in kinds:
            found.add(frozenset(files))
    return found


def count(planted: Planted, rows: list[dict[str, str]], there: set[frozenset[str]]) -> dict[str, int]:
    """What was found of what was planted; there: pairs of drawings that are alike in the clip art itself."""
    labels = [row["path"] for row in rows if row["finding"] == "labels"][:40]
    exact, near = pairs(rows, "exact"), pairs(rows, "near", "leaks", "across")
    alike = pairs(rows, "near", "leaks", "across", drawings=True)
    wanted = {kind: {*map(frozenset, getattr(planted, kind).items())} for kind in ("exact", "near", "leaks")}
    return {
        "labels": len({*labels} & {*planted.labels}),
        "exact": len(exact & wanted["exact"]),
        "false exact": len(exact - wanted["exact"]),
        "near": len(near & wanted["near"]),
        "false near": len({pair for pair in alike if len(pair) > 1} - there),
        "leaks": len(near & wanted["leaks"]),
    }


class Judges:
    """Stands in for our judge of labels, and keeps what it was given for cleanlab's."""

    def __init__(self) -> None:
        self.ours, self.folds = findings.probably_wrong, findings.stratified_folds
        findings.probably_wrong, findings.stratified_folds = self.judge, self.split

    def split(self, data: Dataset, seed: int) -> list[tuple[Tensor, Tensor]]:
        folds = self.folds(data, seed)
        self.files = [str(data.images[i]) for _, held in folds for i in held]
        return folds

    def judge(self, answers: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, int, float]]:
        self.given = {"labels": labels, "pred_probs": answers}
        return self.ours(answers, labels)

    def cleanlabs(self, planted: Planted) -> dict[str, int]:
        """How many wrong labels are in the first 40 of cleanlab's, by the names of its rankings."""
        from cleanlab.filter import find_label_issues

        found = {}
        for ranking in ("self_confidence", "normalized_margin"):
            order = find_label_issues(**self.given, return_indices_ranked_by=ranking, n_jobs=1)
            found[f"cleanlab, {ranking}"] = len({self.files[i] for i in order[:40]} & {*planted.labels})
        return found


def main() -> None:
    """Print what was found for each seed, of 20 labels, 15 exact, 15 near and 10 leaks."""
    judges = Judges()
    with tempfile.TemporaryDirectory() as place:
        there = pairs(audited(CLIPART, Path(place, "clipart")), "near", "leaks", "across", drawings=True)
        for seed in map(int, sys.argv[1:] or ["0"]):
            root = Path(place, str(seed))
            planted = plant(root, seed)
            found = count(planted, audited(root, Path(place, f"audit {seed}")), there)
            if importlib.util.find_spec("cleanlab"):
                found |= judges.cleanlabs(planted)
            print(f"seed {seed}:", ", ".join(f"{number} {what}" for what, number in found.items()))


if __name__ == "__main__":
    main()
