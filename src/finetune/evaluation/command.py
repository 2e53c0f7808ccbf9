"""What `finetune evaluate` and `export` do with a run."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.atomic import check_out, write_json
from finetune.build import find_data
from finetune.choices.given import is_given
from finetune.config.compose import override_settings
from finetune.config.schema import Data, Settings
from finetune.data.dataset import Dataset
from finetune.errors import RequestError
from finetune.evaluation import tables
from finetune.evaluation.calibration import temperature_of
from finetune.evaluation.evaluate import choose_images, evaluate_images
from finetune.evaluation.export import example_inputs, export_target, write_export
from finetune.evaluation.formats import FORMATS
from finetune.evaluation.forward import Predictor
from finetune.evaluation.overlay import maps
from finetune.evaluation.recipe import RUNS, loads_into
from finetune.report.page import write_report
from finetune.runs.folder import find_run
from finetune.runs.open import Saved, open_run
from finetune.runs.settings import read_settings, resumed_by
from finetune.runs.summary import read_summary, worse_by_temperature
from finetune.say import Screen, progress, say
from finetune.training import device as devices

# What may be asked of an evaluation; how images are prepared is the run's own.
WHICH = [f"data.{name}" for name in Data.model_fields if name not in ("image_size", "crop", "augment")]
TAKES = ("data", "trainer", "precision", "cache_dir", "cache_shared", "trainer.accelerator", *WHICH)


def evaluate_run(run: str, overrides: list[str], out: Path | None, split: str | None, raw: bool) -> None:
    """Measure a run's model on its own data, or on what overrides name instead.

    out: a JSON file for all of it. split: of the data. raw: leave the probabilities uncalibrated.
    """
    if out:
        check_out("--out=", out)
    console, saved = Screen(), open_run(run)
    settings = override_settings(saved.settings, overrides, TAKES)
    device = devices.accelerator(settings.trainer.accelerator)
    if settings.precision != saved.settings.precision:
        devices.precision(settings.precision, device)
    how = replace(saved.preprocessing, repair=settings.data.bad_images == "repair")
    predictor = Predictor(replace(saved, preprocessing=how), settings.precision, device, raw)
    found = measure_run(saved, settings, predictor, split=split, console=console)
    if out:
        write_json(out, {"run": str(saved.folder), "temperature": predictor.temperature} | found)


def measure_run(
    saved: Saved, settings: Settings, predictor: Predictor, split: str | None, console: Console
) -> dict[str, Any]:
    """Measure a run's model on the data of other settings, show what was found, and return it."""
    named_alike, how = _images(settings) == _images(saved.settings), predictor.saved.preprocessing
    dataset = _find_measured(settings, None if named_alike else saved.trained_on)
    if is_given(settings.data.source) and dataset.fingerprint() != saved.trained_on:
        if settings is saved.settings:
            wanted = "expected the run's own images; those given since are others"
            raise RequestError(f"data={settings.data.source}: {wanted}; evaluate(data=…) takes any")
        named_alike = False
    chosen = choose_images(dataset, saved, split, named_alike)
    for kind, found in dataset.brightness.items():
        if (own := tuple(how.brightness.get(kind, found))) != found:
            here, alone = ("{:.10g} and {:.10g}".format(*ends) for ends in (own, found))
            text = f"black and white are the run's, {here}; these images alone would have {alone}"
            say(console, "warning", text)
    say(console, "model", f"{settings.model} of {saved.folder}, {len(saved.classes)} classes")
    for text in chosen.dataset.warnings:
        say(console, "warning", text)
    with progress(console, "reading images", len(chosen.rows)) as advance:
        evaluation = evaluate_images(predictor, chosen, settings.data.bad_images, advance)
    worse = worse_by_temperature(saved.summary or {})
    scaled = f"logits divided by {predictor.temperature:.3f}" + (worse and f"; in the run {worse}")
    tables.show_evaluation(console, chosen, evaluation, scaled if predictor.temperature != 1 else "none")
    return tables.evaluation_json(chosen, evaluation)


def report_run(run: str) -> None:
    """Write the report of a finished run; RequestError of one that has not ended."""
    folder = find_run(run)
    summary = read_summary(folder)
    if summary is None or summary.get("status") != "finished":
        wanted = "expected a finished run, with summary.json in it"
        raise RequestError(f"{folder}: {wanted}; {resumed_by(folder)} goes on with it")
    try:
        images = find_data(read_settings(folder)).images
    except RequestError:  # only the thumbnails are lacking then
        images = []
    with devices.threads(1):  # as the run itself writes it
        Screen().print(str(write_report(folder, summary, images, partial(maps, open_run(run)))))


def _find_measured(settings: Settings, own: str | None) -> Dataset:
    """The images to measure; all of those whose fingerprint is another than `own`."""
    if own is None:
        return find_data(settings, measured=True)
    with suppress(RequestError):  # others may have no column of groups, or too few for folds
        if (dataset := find_data(settings, measured=True)).fingerprint() == own:
            return dataset
    usual = dict.fromkeys(("split_seed", "folds", "fold", "group_column", "group"))
    data = settings.data.model_copy(update=usual)
    return find_data(settings.model_copy(update={"data": data}), measured=True)


def _images(settings: Settings) -> dict[str, Any]:
    """The settings that say which images are meant; a folder is the same by whatever path."""
    named = settings.data.model_dump(exclude={"image_size", "crop", "augment", "bad_images", "workers"})
    return {**named, "root": named["root"] and os.path.realpath(os.path.expanduser(named["root"]))}


def export_run(run: str, format: str, out: Path | None, softmax: bool) -> None:
    """Write a run's model in a format, checked against the model itself."""
    console, saved = Screen(), open_run(run)
    target = export_target(saved, format, out, softmax)
    dataset = None
    if FORMATS[format].convert:
        try:
            dataset = find_data(saved.settings, measured=True)
        except RequestError as gone:
            say(console, "note", f"the run's images are not there ({gone})")
    inputs, what = example_inputs(dataset, saved.preprocessing)
    temperature = temperature_of(saved.summary)
    difference = write_export(saved, format, target, inputs, temperature=temperature if softmax else None)
    script = "predict.py" if target.stem == "model" else f"{target.stem}.predict.py"
    beside = f", and {script} beside it, which runs it" if target.suffix.lower() in RUNS else ""
    say(console, "export", f"{target}{beside}")
    if softmax:
        say(console, "softmax", f"of the logits divided by the temperature {temperature:.4g}")
    if difference is None:
        say(console, "loads", f"into {loads_into(saved)}")
    else:
        say(console, "check", f"on {what} its outputs differ from the model's by {difference:.1e} at most")
