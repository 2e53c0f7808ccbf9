"""What `finetune evaluate`, `predict` and `export` do with a run."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from finetune.config.compose import override_settings
from finetune.config.schema import Data, Settings
from finetune.errors import RequestError, RunError
from finetune.inference import export as exports
from finetune.inference import tables
from finetune.inference.calibration import temperature_of
from finetune.inference.evaluate import choose, evaluate
from finetune.inference.forward import Predictor
from finetune.inference.paths import find
from finetune.inference.predict import format_of, predict
from finetune.report.say import Screen
from finetune.report.terminal import progress, say
from finetune.saved import open_run
from finetune.training import device as devices

# What may be asked of an evaluation; how pictures are prepared is the run's own.
WHICH = [f"data.{name}" for name in Data.model_fields if name not in ("image_size", "augment")]
TAKES = ("data", "trainer", "precision", "cache_dir", "cache_shared", "trainer.accelerator", *WHICH)


def evaluate_run(run: str, overrides: list[str], out: Path | None, split: str | None, raw: bool) -> None:
    """Measure a run's model on its own data, or on what overrides name instead.

    out: a JSON file for all of it. split: of the data. raw: leave the probabilities uncalibrated.
    """
    from finetune.parts import find_data  # brings Lightning, which predict does without

    tables.check(out)
    console, saved = Screen(), open_run(run)
    settings = override_settings(saved.settings, overrides, TAKES)
    if settings.precision != saved.settings.precision:
        devices.precision(settings.precision, devices.accelerator(settings.trainer.accelerator))
    predictor = Predictor(saved, settings.precision, settings.trainer.accelerator)
    given, own = (_pictures(one) for one in (settings, saved.settings))
    chosen = choose(find_data(settings), saved.trained_on, given == own, saved.classes, settings.loss, split)
    temperature = 1.0 if raw else temperature_of(saved.summary)
    say(console, "model", f"{settings.model} of {saved.folder}, {len(saved.classes)} classes")
    with progress(console, "reading pictures", len(chosen.rows)) as advance:
        evaluation = evaluate(
            predictor, chosen, settings.data.bad_images, settings.loss, temperature, advance
        )
    tables.show(console, chosen, evaluation, temperature)
    if out:
        tables.write(out, saved.folder, chosen, evaluation, temperature)


def _pictures(settings: Settings) -> dict[str, Any]:
    """The knobs that say which pictures are meant; a folder is the same by whatever path."""
    knobs = settings.data.model_dump(exclude={"image_size", "augment", "bad_images", "workers"})
    return {**knobs, "root": knobs["root"] and os.path.realpath(os.path.expanduser(knobs["root"]))}


def predict_paths(
    run: str, paths: list[str], out: Path | None, top: int, raw: bool, strict: bool, format: str | None
) -> None:
    """Classify the pictures that `paths` name, to stdout or a file.

    top: how many classes a picture. strict: raise RunError where a picture cannot be read.
    """
    kind, pictures, saved = format_of(out, format), find(paths, sys.stdin), open_run(run)
    predictor = Predictor(saved, saved.settings.precision)
    temperature = 1.0 if raw else temperature_of(saved.summary)
    console = Screen(stderr=True)
    # Rows and a bar on one terminal would be in each other's way.
    total = pictures.total
    bar = (
        nullcontext(lambda _: None)
        if not out and sys.stdout.isatty()
        else progress(console, "predict", total)
    )
    with bar as advance:
        tally = predict(predictor, pictures, out, kind, top, saved.settings.loss, temperature, advance)
    tally.tell(console, predictor.form, temperature)
    if strict and tally.broken:
        told = f"{tally.broken:,} of {tally.pictures:,} pictures cannot be read"
        raise RunError(f"--strict: {told}; the first is {tally.first}")


def export_run(run: str, kind: str, out: Path | None, softmax: bool) -> None:
    """Write a run's model as `kind`, checked against the model itself."""
    from finetune.parts import find_data  # brings Lightning, which predict does without

    console = Screen()
    saved = open_run(run)
    target = exports.target_of(saved, kind, out, softmax)
    dataset = None
    if kind != "safetensors":
        try:
            dataset = find_data(saved.settings)
        except RequestError as gone:
            say(console, "note", f"the run's pictures are not there ({gone})")
    inputs, what = exports.examples(dataset, saved.preprocessing)
    temperature = temperature_of(saved.summary)
    difference = exports.write(saved, kind, target, inputs, temperature if softmax else None)
    say(console, "export", str(target))
    if softmax:
        say(console, "softmax", f"of the logits divided by the temperature {temperature:.4g}")
    if difference is None:
        say(console, "loads", f"into {exports.loads_into(saved)}")
    else:
        say(console, "check", f"on {what} its outputs differ from the model's by {difference:.1e} at most")
