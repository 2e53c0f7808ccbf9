"""What `finetune predict` takes, an option each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typer import Argument, Option

RUN = Argument(help="A run's folder, or latest.")
IMAGES = Argument(help="Images, folders or tables of them, globs, or - for a list on stdin.")
RAW = Option(False, "--raw", help="Leave the probabilities uncalibrated.")


@dataclass(frozen=True)
class PredictOptions:
    """The options by name."""

    run: str = RUN
    paths: list[str] = IMAGES
    out: Path | None = Option(None, help="Write to this .csv or .jsonl, not to stdout.")
    top: int = Option(1, min=1, help="How many classes an image, the likeliest first.")
    raw: bool = RAW
    strict: bool = Option(False, "--strict", help="End with exit code 1 if an image cannot be read.")
    format: str | None = Option(None, help="csv or jsonl, whatever the file's extension.")
    neighbours: int = Option(0, min=0, help="Name so many of the nearest training images.")
    reject: float | None = Option(None, help="Answer `none of these` where `familiar` is lower, as 0.05.")
    coverage: float | None = Option(None, help="List classes that hold the truth so often, as 0.9.")
