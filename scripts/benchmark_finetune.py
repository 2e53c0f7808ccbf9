"""Recipes that train the backbone, against timm's and fastai's: accuracies on redrawn splits, and seconds.

    python scripts/benchmark_finetune.py [--stamps FOLDER] [--photographs FOLDER…] [--fastai PYTHON]
        [--lite0 FILE] [--draws 5] [--size 128] [--only PART…] [--contenders NAME…]

Splits, weights and options are those of scripts/benchmark_heads.py, and all images are of one size. timm's
recipe is scripts/timm_recipe.py, twenty epochs; fastai's is its fine_tune(10). Writes
docs/benchmark_finetune.json; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmark_heads import Draw, find_data_sets, show
from other_loops import lay_out
from photographs import ROOT, save_weights
from redrawn import lite0
from rich.console import Console

from finetune.config.compose import compose
from finetune.run import run

# What a user would type, and what the parts of lp_ft are worth.
CONTENDERS: dict[str, tuple[str, ...]] = {
    "head, solved": ("optimizer=lbfgs", "refit=true"),
    "head, all stages": ("optimizer=lbfgs", "refit=true", "head_features=all"),
    "lp_ft": ("experiment=lp_ft",),
    "lp_ft, last stage": ("experiment=lp_ft", "head_features=last"),
    "lp_ft, last stage, not refitted": ("experiment=lp_ft", "head_features=last", "refit=false"),
    "freeze=none": ("freeze=none",),
    "freeze=auto": ("freeze=auto",),
}


def ours(own: Sequence[str], name: str, draw: Draw) -> dict[str, Any]:
    """A run's accuracy on the test images, and its seconds from the images on."""
    summary = run(compose([*draw.overrides, *own]), draw.folder / name, Console(quiet=True))
    return {"accuracy": summary["test"]["accuracy"], "seconds": summary["timing"]["total"]}


def theirs(command: Sequence[str], draw: Draw) -> dict[str, Any]:
    """What a script of another library prints."""
    options = (str(draw.folder / "images"), f"--size={draw.size}", f"--seed={draw.seed}")
    ended = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def contenders(weights: Path, model: str, fastai: Path | None) -> dict[str, Callable[[Draw], dict[str, Any]]]:
    """All that are compared; fastai's with a resnet18 alone."""
    found: dict[str, Callable[[Draw], dict[str, Any]]] = {}
    for name, own in CONTENDERS.items():
        found[name] = partial(ours, own, name)
    common = (f"--weights={weights}",)
    found["timm"] = partial(theirs, (sys.executable, "scripts/timm_recipe.py", f"--model={model}", *common))
    if fastai and model == "resnet18":
        found["fastai"] = partial(
            theirs, (str(fastai), "scripts/fastai_learner.py", "--fine-tune=10", *common)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photographs", type=Path, nargs="+")
    for folder in ("stamps", "lite0", "fastai"):
        parser.add_argument(f"--{folder}", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="the side of the images in pixels")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these")
    parser.add_argument("--contenders", nargs="*", default=[], help="those to compare; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmark_finetune.json")
    asked = parser.parse_args()
    asked.fashion = None
    results: dict[str, dict[str, list[Any]]] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with TemporaryDirectory() as name:
        work = Path(name)
        save_weights(work / "bundled.pt")
        weights = {"bundled": (work / "bundled.pt", "resnet18", ["weights=bundled"])}
        if asked.lite0:
            lite0(asked.lite0, work / "lite0.pt")
            own = ["model=timm/tf_efficientnet_lite0", f"weights={work / 'lite0.pt'}"]
            weights["Lite0"] = (work / "lite0.pt", "tf_efficientnet_lite0", own)
        for kind, data in find_data_sets(asked, work).items():
            for known, (file, model, overrides) in weights.items():
                row = f"{kind}, {known}"
                if asked.only and not any(part in row for part in asked.only):
                    continue
                for draw in replace(data, size=asked.size).draws(asked.draws, overrides, work):
                    lay_out(draw.table, draw.folder / "images")
                    for contender, one in contenders(file, model, asked.fastai).items():
                        done = results.setdefault(row, {}).setdefault(contender, [])
                        if len(done) > draw.seed or contender not in (asked.contenders or [contender]):
                            continue
                        done.append(one(draw))
                        print(row, draw.seed, contender, done[-1], file=sys.stderr, flush=True)
                        asked.out.write_text(json.dumps(results, indent=1) + "\n")
    show({row: {name: ran for name, ran in found.items() if ran} for row, found in results.items()})


if __name__ == "__main__":
    main()
