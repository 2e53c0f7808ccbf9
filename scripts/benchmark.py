"""Time finetune against the loop of PyTorch's transfer-learning tutorial, as whole processes on one machine.

    python scripts/benchmark.py --photographs FOLDER…

prints the table and writes docs/benchmark.json and docs/benchmark.png.

Ratios within one run are what counts; processes take turns, so that a machine that slows down slows all.
The pictures are 500 x 375 JPEGs cut from large photographs: a class per photograph. Both sides start from the
same weights, use 224 px, SGD 0.01 with momentum 0.9 and batches of 64.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
SIZE = (500, 375)


@dataclass
class Contender:
    """A command, with what each of its runs took and came to."""

    name: str
    freeze: str
    epochs: int
    command: list[str]
    summary: Path | None = None
    clean: Path | None = None
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)

    def run(self, seed: int) -> None:
        """One whole process: wall seconds, peak memory in MB, validation accuracy, pictures a second."""
        if self.clean:
            subprocess.run(["rm", "-rf", str(self.clean)], check=True)
        ours = self.summary is not None
        started = time.perf_counter()
        process = subprocess.Popen(
            [*self.command, f"seed={seed}" if ours else f"--seed={seed}"], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.perf_counter() - started)
        if status:
            sys.exit(f"{' '.join(self.command)} failed:\n{output.decode()}")
        self.memory.append(usage.ru_maxrss / 1000)
        if self.summary:
            newest = max(self.summary.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
            result = json.loads(newest.read_text())
            self.accuracy.append(result["val"]["accuracy"])
            features = result["features"]
            if features and features["computed"]:
                self.rate.append(features["computed"] / features["seconds"])
        else:
            result = json.loads(output.splitlines()[-1])
            self.accuracy.append(result["accuracy"])
            self.rate.append(result["pictures"] / statistics.median(result["epoch_seconds"]))

    def described(self) -> dict[str, Any]:
        return {
            "contender": self.name,
            "freeze": self.freeze,
            "epochs": self.epochs,
            "seconds": statistics.median(self.seconds),
            "all_seconds": self.seconds,
            "memory_mb": max(self.memory),
            "accuracy": statistics.mean(self.accuracy),
            "accuracy_std": statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else 0.0,
            "pictures_per_second": statistics.median(self.rate) if self.rate else None,
        }


def cut_pictures(sources: list[Path], folder: Path, train: int, val: int, classes: int) -> None:
    """Cut pictures from large photographs: to train from the left part of each, to validate from the rest."""
    from PIL import Image

    found = [
        path
        for source in sources
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
    chance = random.Random(0)
    chance.shuffle(found)
    used = 0
    for path in found:
        with Image.open(path) as image:
            if image.width < 3 * SIZE[0] or image.height < 2 * SIZE[1]:
                continue
            photograph = image.convert("RGB")
        middle = photograph.width * train // (train + val)
        for side, count, left, right in (("train", train, 0, middle), ("val", val, middle, photograph.width)):
            target = folder / side / f"{used:02}"
            target.mkdir(parents=True)
            for i in range(count // classes):
                width = chance.randint(
                    SIZE[0] // 2, min(right - left, photograph.height * 4 // 3, 2 * SIZE[0])
                )
                height = width * 3 // 4
                x, y = chance.randint(left, right - width), chance.randint(0, photograph.height - height)
                part = photograph.crop((x, y, x + width, y + height)).resize(SIZE)
                part.save(target / f"{i:03}.jpg", quality=90)
        used += 1
        if used == classes:
            return
    sys.exit(
        f"--photographs: expected {classes} photographs of {3 * SIZE[0]} x {2 * SIZE[1]} pixels or more;"
        f" found {used}"
    )


def save_weights(target: Path) -> None:
    """The bundled weights as the plain state dict that both sides load."""
    import torch
    from safetensors.torch import load_file

    state = load_file(ROOT / "src/finetune/assets/resnet18-bundled.safetensors")
    torch.save(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}, target
    )


def contenders(work: Path, freeze: str, epochs: int) -> list[Contender]:
    """The tutorial's loop with and without augmentation, and ours without a cache, cold and warm."""
    loop = [
        sys.executable,
        "scripts/tutorial_loop.py",
        str(work / "pictures"),
        f"--weights={work / 'resnet18.pth'}",
    ]
    loop += [f"--freeze={freeze}", f"--epochs={epochs}"]
    slug = freeze.replace(":", "-")

    def ours(name: str, *overrides: str, clean: bool = False) -> Contender:
        runs = work / f"runs-{slug}-{epochs}-{name.replace(' ', '-').replace('=', '-')}"
        cache = work / f"cache-{slug}-{epochs}"
        command = [sys.executable, "train.py", "data=folder", f"data.root={work / 'pictures'}"]
        command += [
            f"weights={work / 'resnet18.pth'}",
            f"freeze={freeze}",
            f"epochs={epochs}",
            "data.val_fraction=0",
        ]
        command += [
            "schedule=step",
            f"cache_dir={cache}",
            f"hydra.run.dir={runs}/${{now:%H-%M-%S-%f}}",
            *overrides,
        ]
        return Contender(f"ours, {name}", freeze, epochs, command, runs, cache if clean else None)

    found = [Contender("tutorial", freeze, epochs, loop)]
    if freeze == "none":
        return [*found, ours("bf16")]
    return [
        *found,
        Contender("tutorial, no augmentation", freeze, epochs, [*loop, "--no-augment"]),
        ours("cache=none", "cache=none"),
        ours("fp32 cold", "precision=32", clean=True),
        ours("cold", clean=True),
        ours("warm"),
    ]


def chart(rows: list[dict[str, Any]], target: Path) -> None:
    """How many times faster than the tutorial's loop, for each freeze and number of epochs."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["contender"].startswith("ours")]
    figure = Figure(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    labels = [
        f"freeze={r['freeze']}, {r['epochs']} epochs: {r['contender'].removeprefix('ours, ')}" for r in shown
    ]
    bars = axes.barh(labels[::-1], [row["ratio"] for row in shown][::-1], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1f x", padding=3)
    axes.set(xscale="log", xlabel="times faster than the tutorial's loop (whole processes)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photographs", type=Path, nargs="+", required=True, help="folders of large photographs"
    )
    parser.add_argument("--freeze", nargs="+", default=["all", "through:layer3", "none"])
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, nargs=2, default=[1000, 300], metavar=("TRAIN", "VAL"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        work = Path(name)
        cut_pictures(arguments.photographs, work / "pictures", *arguments.pictures, classes=20)
        save_weights(work / "resnet18.pth")
        rows = []
        for freeze in arguments.freeze:
            for epochs in arguments.epochs:
                group = contenders(work, freeze, epochs)
                for seed in range(arguments.repeats):
                    for contender in group:
                        contender.run(seed)
                        print(
                            f"{freeze} {epochs} {contender.name}: {contender.seconds[-1]:.1f} s",
                            file=sys.stderr,
                        )
                described = [contender.described() for contender in group]
                rows += [{**row, "ratio": described[0]["seconds"] / row["seconds"]} for row in described]
                (arguments.out / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n")
    console, table = Console(width=120), Table()
    for heading in ("freeze", "epochs", "contender", "seconds", "ratio", "accuracy", "MB", "pictures/s"):
        table.add_column(heading, justify="left" if heading in ("freeze", "contender") else "right")
    for row in rows:
        table.add_row(
            row["freeze"],
            str(row["epochs"]),
            row["contender"],
            f"{row['seconds']:.1f}",
            f"{row['ratio']:.1f}x",
            f"{row['accuracy']:.3f} ± {row['accuracy_std']:.3f}",
            f"{row['memory_mb']:.0f}",
            f"{row['pictures_per_second']:.0f}" if row["pictures_per_second"] else "",
        )
    console.print(table)
    chart(rows, arguments.out / "benchmark.png")


if __name__ == "__main__":
    main()
