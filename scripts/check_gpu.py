"""What a GPU has to show: that everything runs on it, and how fast; one JSON object, within eight minutes.

    python scripts/check_gpu.py --out figures.json
    python scripts/check_gpu.py --small        # little of everything, on a CPU, too, in a minute or so
    python scripts/check_gpu.py tests training --seconds 120

The file is written after each part. A part has a time of its own: what takes longer ends there, and what it
has found so far is kept. null: there is no GPU, or what the figure needs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_speed import extraction, training
from photographs import ROOT

sys.path.insert(1, str(ROOT / "src"))  # it need not be installed
Found = dict[str, Any]
SECONDS = 480
MAIN = ("freeze=all", "head=10")
QUICK = ("epochs=2", "data.image_size=64")
SWEEP = ("optimizer.lr=0.1,0.03,0.01,0.003", "optimizer.momentum=0,0.9")

# Multiplies a weight in the second epoch, so that activations are beyond what the format holds.
PLUGIN = """
import pytorch_lightning as pl
from torch import nn
from finetune.choices.callbacks import CALLBACKS

class Overflow(pl.Callback):
    def on_train_epoch_start(self, trainer, learner):
        if trainer.current_epoch == 1:
            norms = [one for one in learner.modules() if isinstance(one, nn.BatchNorm2d)]
            norms[-1].weight.data.mul_({factor})

CALLBACKS["overflow"] = lambda *_: Overflow()
"""


class OutOfTime(BaseException):
    """A part's time is over; nothing on the way takes it for an error of its own."""


def command(*words: str, **environment: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """How long a command took by the clock, and how it ended."""
    began = time.perf_counter()
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:]), **environment}
    ended = subprocess.run([sys.executable, *words], env=own, capture_output=True, text=True, check=False)
    return time.perf_counter() - began, ended


def train(*overrides: str) -> float:
    """Seconds of train.py."""
    seconds, ended = command(str(ROOT / "train.py"), *overrides)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-500:])
    return seconds


def tests(found: Found, place: Path, small: bool) -> None:
    """How many of the tests marked `gpu` pass."""
    if not has_gpu():
        return
    files = [str(one) for one in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in one.read_text()]
    together = ("-n", "4") if find_spec("xdist") else ("-p", "no:xdist")
    shown = ("--tb=short", "--show-capture=no", "--durations=5")
    _, ended = command("-m", "pytest", "--rootdir", str(ROOT), *together, *shown, "-m", "gpu", *files)
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", ended.stdout.splitlines()[-1])
    found |= {what: int(number) for number, what in counts}
    if ended.returncode:
        found["told"] = ended.stdout[-6000:]


def main_job(found: Found, place: Path, small: bool) -> None:
    """The main job with nothing in the store, then again; then 32 at once, against the second."""
    for state in ("cold", "warm"):
        found[state] = train(*MAIN, *QUICK * small, f"hydra.run.dir={place / state}")
    seeds, folder = "seed=0" if small else "seed=0,1,2,3", f"hydra.sweep.dir={place / 'sweep'}"
    found["sweep_jobs"] = 8 if small else 32
    found["sweep"] = train("-m", *MAIN, *QUICK * small, *SWEEP, seeds, folder)
    found["sweep_times_warm"] = found["sweep"] / found["warm"]


def overflow(found: Found, place: Path, small: bool) -> None:
    """How a run ends whose activations overflow: fp16 on a GPU; on a CPU, which has no precision=16, fp32."""
    fp16 = has_gpu()
    (place / "plugin.py").write_text(PLUGIN.format(factor=1e6 if fp16 else 1e39))
    asked = ("freeze=none", "model=timm/test_resnet", "weights=random", "epochs=2", "data.image_size=32")
    words = (
        *asked,
        f"precision={16 if fp16 else 32}",
        "callbacks=overflow",
        f"hydra.run.dir={place / 'over'}",
    )
    _, ended = command(str(ROOT / "train.py"), "--plugin", str(place / "plugin.py"), *words)
    line = ended.stderr.strip()
    found |= {"code": ended.returncode, "lines": len(line.splitlines()), "line": line[-500:]}
    found["names_bf16_and_32"] = "bf16" in line and "32" in line if fp16 else None
    found["epochs_kept"] = kept(place / "over" / "checkpoints" / "last.ckpt")


def kept(file: Path) -> int:
    """How many epochs a checkpoint has behind it, all of whose numbers are finite."""
    import torch

    checkpoint = torch.load(file, weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    return checkpoint["epoch"] + 1


def two_processes(found: Found, place: Path, small: bool) -> None:
    """Whether two processes are refused one GPU."""
    if not has_gpu():
        return
    words = ("trainer=ddp", "trainer.devices=2", "freeze=none", "weights=random", "epochs=1")
    _, ended = command(str(ROOT / "train.py"), *words, CUDA_VISIBLE_DEVICES="0")
    found |= {"code": ended.returncode, "line": ended.stderr.strip()[-500:]}


def memory(found: Found, place: Path, small: bool) -> None:
    """Peak memory of this process and of the largest command, MB."""
    for name, who in (("process_mb", resource.RUSAGE_SELF), ("command_mb", resource.RUSAGE_CHILDREN)):
        found[name] = resource.getrusage(who).ru_maxrss / 1024


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# Of each part the most seconds.
PARTS: dict[str, tuple[int, Callable[[Found, Path, bool], None]]] = {
    "tests": (120, tests),
    "main_job": (120, main_job),
    "overflow": (60, overflow),
    "two_processes": (30, two_processes),
    "training": (80, training),
    "extraction": (300, extraction),
    "memory": (5, memory),
}


def run_part(name: str, found: Found, place: Path, small: bool, until: float) -> str | None:
    """Run a part in its time; returns what ended it early, if anything."""
    limit, part = PARTS[name]
    signal.setitimer(signal.ITIMER_REAL, max(1.0, min(limit, until - time.perf_counter())))
    try:
        part(found, place, small)
    except OutOfTime:
        return "out of time"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def out_of_time(*_: Any) -> None:
    raise OutOfTime


def about() -> Found:
    """The machine and what is installed."""
    import pytorch_lightning
    import timm
    import torch
    import torchvision

    packages = (torch, torchvision, pytorch_lightning, timm)
    return {
        "device": torch.cuda.get_device_name() if has_gpu() else None,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {one.__name__: one.__version__ for one in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="little of everything, for a CPU")
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    out = arguments.out and arguments.out.absolute()
    until, found = time.perf_counter() + arguments.seconds, about()
    signal.signal(signal.SIGALRM, out_of_time)
    with TemporaryDirectory() as name, chdir(name):
        os.environ["HOME"] = name  # nothing is in the store
        for part in arguments.parts or PARTS:
            began, figures = time.perf_counter(), Found()
            wrong = run_part(part, figures, Path(name), arguments.small, until)
            took = {"part_seconds": time.perf_counter() - began}
            found[part] = (
                {**figures, **took, **({"wrong": wrong} if wrong else {})} if figures or wrong else None
            )
            if out:
                out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
