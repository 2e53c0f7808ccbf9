"""summary.json of a run: what it came to, read back."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.atomic import holds, read_json, sha256_of, write_sealed
from finetune.errors import RequestError

DIGESTS = "digests.json"
APART = (("weights", "sha256"), ("frozen_proof", "sha256"), ("frozen_proof", "each"), ("data", "fingerprint"))

# What is read of a finished run, and its types; of another why it has not finished.
FINISHED: dict[str, Any] = {"epochs": int, "best_epoch": int, "classes": list}
FINISHED |= dict.fromkeys(("timing", "data", "weights", "preprocessing"), dict)
FINISHED |= dict.fromkeys(("val", "test", "calibration", "features"), dict | None)
KINDS: dict[str, dict[str, Any]] = {
    "finished": FINISHED,
    "failed": {"reason": str},
    "interrupted": {"reason": str},
}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write what a finished run came to, for people to read, and the SHA-256 of what it is made of apart."""
    told = {key: dict(value) if isinstance(value, dict) else value for key, value in summary.items()}
    apart = {f"{section}.{key}": told[section].pop(key) for section, key in APART if key in told[section]}
    apart["files"] = told.pop("files", {})
    write_sealed(folder / DIGESTS, apart)
    write_sealed(folder / "summary.json", told | {DIGESTS: sha256_of(apart)})


def worse_by_temperature(summary: Mapping[str, Any]) -> str:
    """What dividing by the temperature made worse on the images that it was measured on; empty: nothing."""
    fitted, told = summary.get("calibration") or {}, []
    for name, key in (("log-loss", "log_loss"), ("calibration error", "ece")):
        before, after = (fitted.get(f"{key}_{when}", 0.0) for when in ("before", "after"))
        if after - before > 0.005:  # less is not worth a word
            told.append(f"the {name} from {before:.3f} to {after:.3f}")
    sides = {"test": "test images", "val": "validation images"}  # else it was fitted on them, too
    side = sides.get(str(fitted.get("measured_on")), "the answers of the folds")
    return f"on {side} the temperature raised {' and '.join(told)}" if told else ""


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run, None where there is none yet; raises RequestError where it is damaged."""
    file = folder / "summary.json"
    if not file.exists():
        return None
    way = f"delete it, and finetune resume {shlex.quote(str(folder))} writes it again"
    summary = read_json(file, "the summary of a run", way)
    if not holds(summary, KINDS.get(str(summary.get("status")))):
        raise RequestError(f"{file}: expected the summary of a run; it holds something else; {way}")
    if sha256 := summary.pop(DIGESTS, None):  # older runs have them in the summary
        way = way.replace("it,", f"{file},", 1)
        apart = read_json(folder / DIGESTS, "the SHA-256 of what a run wrote", way)
        if sha256_of(apart) != sha256:
            raise RequestError(f"{folder / DIGESTS}: expected this run's; it is of other results; {way}")
        summary["files"] = apart.pop("files")
        for name, value in apart.items():
            section, _, key = name.partition(".")
            summary[section][key] = value
    return summary
