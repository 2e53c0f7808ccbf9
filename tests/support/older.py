"""Runs as older versions wrote them: with nothing that tells whether a file has been changed."""

import json
from pathlib import Path
from typing import Any

import torch

from finetune.runs.summary import read_summary


def as_older(run: Path, **changed: Any) -> None:
    """Take every SHA-256 out of a run's files, and change some of its settings."""
    for name in ("settings.json", "summary.json"):
        values = json.loads((run / name).read_text()) if (run / name).exists() else {}
        if values.pop("digests.json", None):
            values = read_summary(run)
        values.pop("sha256", None)
        if values:
            values |= changed if name == "settings.json" else {}
            (run / name).write_text(json.dumps(values))
    for file in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        content.pop("sealed", None)
        for key in ("settings", "about", "overrides"):
            content["origin"].pop(key, None)
        torch.save(content, file)
