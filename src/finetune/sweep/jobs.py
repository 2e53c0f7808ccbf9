"""The jobs of a sweep, as their folders tell of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from finetune.errors import RequestError

SWEEPS = Path("outputs") / "sweeps"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    overrides: what its command line would be, key by key. status: finished, failed, interrupted or unfinished
    (it waits, runs, or was killed). val, test: the metrics of a finished one, None where there is no such
    split. seconds: how long it took.
    """

    folder: Path
    overrides: dict[str, str]
    status: str
    reason: str
    val: dict[str, float] | None
    test: dict[str, float] | None
    seconds: float | None


def find_sweep(sweep: str) -> Path:
    """The folder that `SWEEP` on the command line means: a path, or `latest`, the sweep begun last.

    Raises:
        RequestError: there is no such folder.
    """
    folder = Path(sweep)
    if sweep == "latest" and not folder.exists():
        begun = sorted(SWEEPS.glob("*/*/multirun.yaml"), key=lambda file: file.stat().st_mtime)
        if not begun:
            raise RequestError(f"latest: expected a sweep in {SWEEPS}; there is none here")
        return begun[-1].parent
    if not folder.is_dir():
        raise RequestError(f"{folder}: expected the folder of a sweep; there is no such folder")
    return folder


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs below a folder, in the order of their numbers.

    Raises:
        RequestError: a summary is damaged.
    """
    files = sweep.rglob(".hydra/overrides.yaml")
    return [_read(file) for file in sorted(files, key=lambda file: in_order(str(file.relative_to(sweep))))]


def in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def ranges(names: Iterable[str]) -> str:
    """Jobs by their names, in their order and few words: 0-3, 7, 10."""
    runs: list[list[str]] = []
    for name in sorted(names, key=in_order):
        if runs and name.isdigit() and runs[-1][-1].isdigit() and int(name) == int(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _read(file: Path) -> Job:
    folder = file.parents[1]
    overrides = {
        key.lstrip("+~"): value
        for key, _, value in (str(line).partition("=") for line in OmegaConf.load(file))
    }
    summary = summary_of(folder)
    status = summary.get("status", "unfinished")
    reason = summary.get("reason", "" if status == "finished" else _how_far(folder))
    seconds = summary.get("timing", {}).get("total")
    return Job(folder, overrides, status, reason, summary.get("val"), summary.get("test"), seconds)


def summary_of(folder: Path) -> dict[str, Any]:
    """What a job came to; empty where it has not ended.

    Raises:
        RequestError: it is damaged.
    """
    file = folder / "summary.json"
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{file}: expected the summary of a run ({error})") from None


def _how_far(folder: Path) -> str:
    """What an unfinished job has done: metrics.csv has a row for each epoch."""
    table, settings = folder / "metrics.csv", folder / "settings.json"
    if not settings.exists():
        return "not begun"
    epochs = json.loads(settings.read_text(encoding="utf-8"))["epochs"]
    done = max(len(table.read_text(encoding="utf-8").splitlines()) - 1, 0) if table.exists() else 0
    return f"{done} of {epochs} epochs so far"
